"""What a GPU search reads: the table as it lies on the device, and the queries and filters of one call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fuserec.kernels._arrays import Array, FloatArray
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.quantize import Codes
from fuserec.kernels.query import Pool
from fuserec.kernels.search.gpu_config import Dtype, query_levels

# Rows at 16 elements load in the widest words, whatever the width of the table is.
ALIGNMENT = 16
_CHUNK_ROWS = 1 << 16
_FEWEST_LEVELS = 127  # query codes coarser than this would make the bounds useless


@dataclass(frozen=True, eq=False)
class DeviceCodes:
    """Codes on the device: values (N, stride) int8, scales (N,) and reaches (N,) float32; see `_kernel_sift.py`."""

    values: torch.Tensor
    scales: torch.Tensor
    reaches: torch.Tensor


@dataclass(frozen=True, eq=False)
class DeviceTable:
    """The item table on the device: items (N, stride) float32 or float16, columns from `dim` on zero; and its codes."""

    items: torch.Tensor
    codes: DeviceCodes | None
    dim: int

    @property
    def rows(self) -> int:
        """Number of items, N."""
        return self.items.shape[0]

    @property
    def dtype(self) -> Dtype:
        """What pass 1 streams."""
        if self.codes is not None:
            return "int8"
        return "float16" if self.items.dtype == torch.float16 else "float32"


@dataclass(frozen=True, eq=False)
class DeviceQuery:
    """Queries and filters of one search: the tensors in the order of the kernels' arguments, and what they depend on.

    Attributes:
        pooled: table, ids, bags, weights.
        filters: Offsets and rows of the excluded, allow.
        pool_flags: The compile-time arguments that go with `pooled`.
        filter_flags: Those that go with `filters`.
        batch: Number of queries, B.
        n_steps: Rounds of a binary search in the longest list of excluded rows.
        stride_allow: 0 where one mask serves the batch.
    """

    pooled: tuple[torch.Tensor, ...]
    filters: tuple[torch.Tensor, ...]
    pool_flags: dict[str, Any]
    filter_flags: dict[str, Any]
    batch: int
    n_steps: int
    stride_allow: int


def to_device_table(items: FloatArray, codes: Codes | None, device: str) -> DeviceTable:
    """Copy a table to `device`; as float16 if that loses nothing, for then its rows are half as many bytes."""
    rows = _padded(items, device)
    half = rows.half()
    if torch.equal(half.float(), rows):
        rows = half
    dim = items.shape[1]
    if codes is None or query_levels(dim) < _FEWEST_LEVELS:
        return DeviceTable(rows, None, dim)
    values, scales = _padded(codes.values, device), to_tensor(codes.scale, device)
    reaches = torch.empty_like(scales)
    for start in range(0, len(values), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        lengths = scales[part].double() * values[part].double().square().sum(1).sqrt()
        reaches[part] = reach(lengths, to_tensor(codes.residual[part], device).double(), dim).float()
    return DeviceTable(rows, DeviceCodes(values, scales, reaches), dim)


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


def to_device_query(pool: Pool, out: RowFilter, *, normalize: bool, rows: int, device: str) -> DeviceQuery:
    """Copy queries and filters to `device`."""
    longest = int(np.diff(out.offsets).max())
    pooled = (pool.table, pool.ids, pool.offsets, pool.weights)
    filters = (out.offsets, out.rows, out.allow.view(np.uint8))
    return DeviceQuery(
        pooled=tuple(to_tensor(array, device) for array in pooled),
        filters=tuple(to_tensor(array, device) for array in filters),
        pool_flags={"KIND": pool.kind, "WEIGHTED": pool.weights.size > 0, "NORMALIZE": normalize},
        filter_flags={"EXCLUDE": longest > 0, "ALLOW": len(out.allow) > 0},
        batch=pool.batch,
        n_steps=longest.bit_length(),
        stride_allow=rows if len(out.allow) > 1 else 0,
    )


def to_tensor(array: Array | torch.Tensor, device: str) -> torch.Tensor:
    """Return `array` on `device`; never empty, as triton takes no empty tensors."""
    if isinstance(array, torch.Tensor):
        return array.to(device)
    # Copied first because torch does not take read-only arrays.
    return torch.from_numpy(np.array(array) if array.size else np.zeros(1, array.dtype)).to(device)


def _padded(array: Array, device: str) -> torch.Tensor:
    """Return (N, D) on `device` with zero columns up to the next multiple of `ALIGNMENT`."""
    tensor = to_tensor(array, device)
    missing = -array.shape[1] % ALIGNMENT
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor
