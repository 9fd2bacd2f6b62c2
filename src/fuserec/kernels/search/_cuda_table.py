"""The item table as a GPU search reads it: codes and item ids on the device, the rows there or in host memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch

from fuserec.errors import DeviceError, DeviceMemoryError
from fuserec.kernels._arrays import Array, FloatArray, IntArray, aligned_empty
from fuserec.kernels.packed import PackedCodes
from fuserec.kernels.quantize import Codes
from fuserec.kernels.search.gpu_config import ALIGNMENT, Dtype, max_rows, query_levels, state_bytes
from fuserec.kernels.search.op import sound_magnitudes

Placement = Literal["device", "host"]

_CHUNK_ROWS: Final = 1 << 16
_FEWEST_LEVELS: Final = 127  # query codes coarser than this would make the bounds useless
_REGISTER_PORTABLE_MAPPED: Final = 1 | 2
_TORCH: Final[dict[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


@dataclass(frozen=True, eq=False)
class DeviceCodes:
    """Codes on the device: values (N, stride) int8, scales (N,) and reaches (N,) float32; see `_kernel_sift.py`."""

    values: torch.Tensor
    scales: torch.Tensor
    reaches: torch.Tensor


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """The item table of one index.

    Attributes:
        items: (N, stride) float32, float16 or bfloat16, columns from `dim` on zero; on the device, or in host memory
            that it reads through the bus.
        item_ids: (N,) int64, ascending.
        codes: The codes, or None.
        limits: (3,) float64: up to which sum of |q| no bound overflows; up to and from which it promises sound scores.
        dim: Columns, D.
        normalize: Queries are scaled to unit length.
        placement: Where the rows are.
    """

    items: torch.Tensor
    item_ids: torch.Tensor
    codes: DeviceCodes | None
    limits: torch.Tensor
    dim: int
    normalize: bool
    placement: Placement

    @property
    def rows(self) -> int:
        """Number of items, N."""
        return self.items.shape[0]

    @property
    def device(self) -> torch.device:
        """Where it is searched."""
        return self.item_ids.device

    @property
    def dtype(self) -> Dtype:
        """Name of the dtype that pass 1 streams."""
        return "int8" if self.codes is not None else self.row_dtype

    @property
    def row_dtype(self) -> Dtype:
        """Name of the dtype of the rows."""
        names: dict[torch.dtype, Dtype] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}
        return names.get(self.items.dtype, "float32")

    @property
    def device_bytes(self) -> int:
        """Bytes that lie on the device."""
        tensors = [self.item_ids, self.limits]
        tensors += [] if self.codes is None else [self.codes.values, self.codes.scales, self.codes.reaches]
        tensors += [self.items] if self.placement == "device" else []
        return sum(tensor.nbytes for tensor in tensors)


def to_device_table(
    items: FloatArray,
    item_ids: IntArray,
    codes: PackedCodes | None,
    device: torch.device,
    *,
    normalize: bool,
    max_abs: float,
    placement: Placement = "device",
) -> DeviceTable:
    """Copy a table to `device`; its rows as float16 or bfloat16 if that loses nothing, for they are half the bytes.

    Args:
        items: (N, D) float32.
        item_ids: (N,) int64.
        codes: Their codes, or None.
        device: A CUDA device; or the CPU, for the interpreter.
        normalize: Queries are scaled to unit length.
        max_abs: Largest absolute value in `items`.
        placement: "host": the rows stay in host memory, locked there and mapped for the device.

    Raises:
        DeviceMemoryError: The device has less memory free than the table takes.
        DeviceError: The rows cannot be mapped for the device.
    """
    rows, dim = items.shape
    if query_levels(dim) < _FEWEST_LEVELS:
        codes = None
    dtype = exact_dtype(items)
    itemsize = _TORCH[dtype].itemsize
    needed = state_bytes(rows, dim, itemsize, rows_on=placement, coded=codes is not None)
    _check_memory(needed, rows, dim, itemsize, device, placement, coded=codes is not None)
    try:
        return DeviceTable(
            items=_rows(items, dtype, device, placement),
            item_ids=_copied(item_ids, device),
            codes=None if codes is None else _codes(codes.unpack(), dim, device),
            limits=_limits(dim, normalize=normalize, max_abs=max_abs).to(device),
            dim=dim,
            normalize=normalize,
            placement=placement,
        )
    except torch.cuda.OutOfMemoryError as error:
        raise _too_little(needed, rows, dim, itemsize, device, placement, coded=codes is not None) from error


def exact_dtype(items: FloatArray) -> Literal["float32", "float16", "bfloat16"]:
    """Return the narrowest dtype that holds every entry exactly."""
    chunks = [items[start : start + _CHUNK_ROWS] for start in range(0, len(items), _CHUNK_ROWS)]
    with np.errstate(over="ignore"):
        if all(np.array_equal(chunk.astype(np.float16).astype(np.float32), chunk) for chunk in chunks):
            return "float16"
    # bfloat16 is the upper half of a float32.
    if all(not np.any(np.ascontiguousarray(chunk).view(np.uint32) & 0xFFFF) for chunk in chunks):
        return "bfloat16"
    return "float32"


def reach(lengths: torch.Tensor, residuals: torch.Tensor, dim: int) -> torch.Tensor:
    """Return how far q.e can be above the product of the codes, for |q| = 1, rounded up far enough for float32.

    Args:
        lengths: |scale c| of each row.
        residuals: At least |e - scale c|.
        dim: Columns, D.
    """
    # |q - unit w| <= unit sqrt(D) / 2, and unit <= |q| / levels; 0.52 for the rounding of q / unit itself.
    query_error = 0.52 * math.sqrt(dim) / query_levels(dim)
    # D for the float32 sum of pass 2, D / 2 for that of |q|^2, and the dozen operations around them.
    gamma = (2 * dim + 64) * 2.0**-24
    total = residuals + query_error * lengths + gamma * (lengths + residuals)
    # The last term is there for what falls below the smallest float32.
    return total * (1 + 2.0**-20) + 2.0**-120


def _limits(dim: int, *, normalize: bool, max_abs: float) -> torch.Tensor:
    """Return `DeviceTable.limits`.

    A bound and the slack in it stay below 16 sqrt(D) max|e| sum|q|; beyond that the exhaustive scan answers.
    """
    shortest, longest = sound_magnitudes(normalize=normalize, max_abs=max_abs)
    safe = math.inf if normalize else longest / (16 * math.sqrt(dim))
    return torch.tensor([safe, longest, shortest], dtype=torch.float64)


def _codes(codes: Codes, dim: int, device: torch.device) -> DeviceCodes:
    values, scales = _padded(codes.values, "int8", device), _copied(codes.scale, device)
    reaches = torch.empty_like(scales)
    for start in range(0, len(values), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        lengths = scales[part].double() * values[part].double().square().sum(1).sqrt()
        reaches[part] = reach(lengths, _copied(codes.residual[part], device).double(), dim).float()
    return DeviceCodes(values, scales, reaches)


def _rows(items: FloatArray, dtype: str, device: torch.device, placement: Placement) -> torch.Tensor:
    if placement == "device":
        return _padded(items, dtype, device)
    as_it_is = dtype == "float32" and items.shape[1] % ALIGNMENT == 0 and items.flags.c_contiguous
    if as_it_is and items.ctypes.data % 64 == 0 and not _is_mapped_file(items):
        rows = torch.from_numpy(_writeable(items))
    else:
        # A file that is mapped read-only cannot be locked for a device, so its rows are read into memory.
        width = -(-items.shape[1] // ALIGNMENT) * ALIGNMENT
        room = aligned_empty((len(items), width), np.uint16 if dtype != "float32" else np.float32)
        rows = torch.from_numpy(room).view(_TORCH[dtype])
        _fill(rows, items)
    if device.type == "cuda":
        _lock(rows)
    return rows


def _lock(rows: torch.Tensor) -> None:
    """Lock host memory and map it for the device, until the tensor is gone."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    status = int(runtime.cudaHostRegister(rows.data_ptr(), rows.nbytes, _REGISTER_PORTABLE_MAPPED))
    if status:
        raise DeviceError(
            f"rows on the host: got CUDA error {status} for {rows.nbytes:,} bytes, expected host memory that can be "
            "locked; see the limit of locked memory (ulimit -l)"
        )
    unlock = weakref.finalize(rows, runtime.cudaHostUnregister, rows.data_ptr())
    unlock.atexit = False  # at the end of a process its driver context may be gone already


def _padded(array: Array, dtype: str, device: torch.device) -> torch.Tensor:
    """Return (N, D) on `device`, with zero columns up to the next multiple of `ALIGNMENT`; no second copy there."""
    width = -(-array.shape[1] // ALIGNMENT) * ALIGNMENT
    made = torch.empty((len(array), width), dtype=_TORCH[dtype], device=device)
    _fill(made, array)
    return made


def _fill(made: torch.Tensor, array: Array) -> None:
    dim = array.shape[1]
    made[:, dim:] = 0
    for start in range(0, len(array), _CHUNK_ROWS):
        # Copied first because torch does not take read-only arrays.
        made[start : start + _CHUNK_ROWS, :dim] = torch.from_numpy(np.array(array[start : start + _CHUNK_ROWS]))


def _copied(array: Array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).to(device)


def _writeable(array: Array) -> Array:
    """Return a view that is not marked read-only, which torch insists on; nothing writes to it."""
    raw: Any = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    raw.owner = array  # kept as long as the view is
    view: Array = np.frombuffer(raw, array.dtype).reshape(array.shape)
    return view


def _is_mapped_file(array: Array) -> bool:
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return isinstance(owner, mmap.mmap)


def _free_bytes(device: torch.device) -> int:
    """Return what the driver has free, and what torch holds of it unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _check_memory(
    needed: int, rows: int, dim: int, itemsize: int, device: torch.device, placement: Placement, *, coded: bool
) -> None:
    if device.type == "cuda" and needed > _free_bytes(device):
        raise _too_little(needed, rows, dim, itemsize, device, placement, coded=coded)


def _too_little(
    needed: int, rows: int, dim: int, itemsize: int, device: torch.device, placement: Placement, *, coded: bool
) -> DeviceMemoryError:
    free = _free_bytes(device)
    fits = max_rows(free, dim, itemsize, rows_on=placement, coded=coded)
    less = state_bytes(rows, dim, itemsize, rows_on="host", coded=coded)
    offer = ""
    if placement == "device" and coded:
        offer = (
            f'; with rows="host" it takes {less:,} bytes there, which {"fit" if less <= free else "do not fit either"}'
        )
    return DeviceMemoryError(
        f"{device}: {rows:,} items of {dim} columns take {needed:,} bytes and {free:,} are free, which hold "
        f"{fits:,} items{offer}",
        needed_bytes=needed,
        free_bytes=free,
        fitting_rows=fits,
    )
