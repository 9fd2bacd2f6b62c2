"""What callers hand over, turned into numpy arrays of known type, or refused with what was expected."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CACHE_LINE_BYTES: Final = 64

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised array that begins on a cache line, where vector loads are whole ones."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + CACHE_LINE_BYTES, np.uint8)
    skip = -room.ctypes.data % CACHE_LINE_BYTES
    return room[skip : skip + size].view(dtype).reshape(shape)


def as_array(value: object, name: str) -> Array:
    """Return `value` as a numpy array; a torch tensor is taken by its methods, so torch need not be imported."""
    if hasattr(value, "detach"):
        try:
            return np.asarray(value.detach().cpu().numpy())
        except TypeError as error:  # bfloat16 and the like, which numpy does not know
            dtype = getattr(value, "dtype", type(value))
            raise ValueError(f"{name}: got dtype {dtype}, expected one that numpy knows") from error
    return np.asarray(value)


def as_float_matrix(value: object, name: str) -> Array:
    """Return `value` as a float32 or float16 array of two dimensions, not copied; bfloat16 as float32, which holds it.

    Raises:
        ValueError: It has another number of dimensions or another dtype.
    """
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        value = value.float()  # type: ignore[attr-defined]
    array = as_array(value, name)
    if array.ndim != 2:
        raise ValueError(f"{name}: got shape {array.shape}, expected two dimensions")
    if array.dtype.char not in "fe":
        raise ValueError(f"{name}: got dtype {array.dtype}, expected float32 or float16")
    return array


def is_on_device(value: object) -> bool:
    """Return whether `value` is a torch tensor on a GPU."""
    return bool(getattr(value, "is_cuda", False))


def as_table(value: object, name: str) -> Any:
    """Return an embedding table as `as_float_matrix` does, but leave one on a GPU where it is.

    Raises:
        ValueError: As `as_float_matrix`; on a GPU, also if it is not float32 and contiguous.
    """
    if not is_on_device(value):
        return as_float_matrix(value, name)
    tensor: Any = value
    if tensor.ndim != 2 or str(tensor.dtype) != "torch.float32" or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: got a {tensor.dtype} tensor of shape {tuple(tensor.shape)} on {tensor.device}, expected a "
            "contiguous float32 one of two dimensions there"
        )
    return tensor.detach()


def as_int_vector(value: object, name: str) -> IntArray:
    """Return `value` as an int64 array of one dimension; an empty list is one too.

    Raises:
        ValueError: It has another number of dimensions, is not of an integer dtype, or does not fit int64.
    """
    array = as_array(value, name)
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {array.shape}, expected one dimension")
    if array.size == 0 and isinstance(value, list | tuple):
        return np.empty(0, np.int64)  # numpy calls an empty list float64
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: got dtype {array.dtype}, expected integers that fit int64")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: got {int(array.max())}, expected integers that fit int64")
    return array.astype(np.int64, copy=False)


def as_offsets(value: object, total: int, name: str) -> IntArray:
    """Return CSR offsets as int64: they start at 0, never fall, and end at `total`.

    Raises:
        ValueError: They do not.
    """
    offsets = as_int_vector(value, name)
    if offsets.size == 0 or offsets[0] != 0:
        raise ValueError(f"{name}: got {offsets[:1].tolist()} at the start, expected 0")
    falls = np.flatnonzero(np.diff(offsets) < 0)
    if falls.size:
        at = int(falls[0])
        raise ValueError(f"{name}: got {offsets[at + 1]} after {offsets[at]} at position {at + 1}, expected to rise")
    if offsets[-1] != total:
        raise ValueError(f"{name}: ends at {offsets[-1]}, expected the number of ids, {total}")
    return offsets


def frozen(array: Array) -> Array:
    """Make an array read-only, and return it."""
    array.flags.writeable = False
    return array


@functools.lru_cache(maxsize=256)
def counted(n: int) -> IntArray:
    """Return 0, 1, ..., n - 1, read-only: numbers of queries, or offsets of lists of one."""
    return frozen(np.arange(n, dtype=np.int64))


def end_to_end(lists: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Return B vectors end to end, and their offsets (B + 1,) int64; a single one is not copied."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(one) for one in lists], out=offsets[1:])
    return lists[0] if len(lists) == 1 else np.concatenate([counted(0), *lists]), offsets


def read_only(array: Array) -> Array:
    """Return a C-contiguous read-only view (or copy): compiled kernels then see one array type, not four."""
    flags = array.flags
    if type(array) is np.ndarray and not flags.writeable and flags.c_contiguous:
        return array
    view = np.ascontiguousarray(array).view(np.ndarray)
    if view is array:
        view = array.view()
    view.flags.writeable = False
    return view
