"""Tensors as bytes, the same over gRPC and HTTP; whatever comes is checked before it is looked into."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import MalformedAnswer

DATATYPES: Final[dict[np.dtype[Any], str]] = {
    np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32",
    np.dtype(np.float32): "FP32",
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.object_): "BYTES",
}
# What answers are made of; an output of another type is none of ours and is passed over.
_READ: Final[dict[str, np.dtype[Any]]] = {name: dtype for dtype, name in DATATYPES.items() if name != "BYTES"}
_NUMBERS: Final = {"INT64": (int,), "INT32": (int,), "FP32": (int, float), "BOOL": (bool,)}
_LONGEST_SAID: Final = 1_000


def to_bytes(array: NDArray[Any]) -> bytes:
    """Return the content of a tensor as it travels."""
    if array.dtype == np.object_:
        return b"".join(struct.pack("<I", len(text)) + text for text in array.ravel())
    return array.tobytes()


def from_bytes(name: str, datatype: str, shape: Sequence[Any], raw: bytes) -> NDArray[Any] | None:
    """Return an output, or None where it is of no type that an answer has.

    Raises:
        MalformedAnswer: Its shape is none, or its bytes do not fill it.
    """
    dtype = _READ.get(datatype)
    if dtype is None:
        return None
    if len(raw) != _count(name, shape) * dtype.itemsize:
        raise MalformedAnswer(f"{readable(name)!r} came with {len(raw)} bytes for {datatype} of shape {_said(shape)}")
    if dtype == np.bool_ and raw.strip(b"\0\1"):
        raise MalformedAnswer(f"{readable(name)!r} came with bytes that are neither true nor false")
    array: NDArray[Any] = np.frombuffer(raw, dtype).reshape(shape)
    return array


def from_numbers(name: str, datatype: str, shape: Sequence[Any], data: Any) -> NDArray[Any] | None:
    """Return an output that came as JSON, as `from_bytes` does."""
    dtype, numbers = _READ.get(datatype), _NUMBERS.get(datatype, ())
    if dtype is None:
        return None
    # By exact type: to Python true is an integer, and numpy reads numbers out of texts.
    if not isinstance(data, list) or any(type(value) not in numbers for value in data):
        raise MalformedAnswer(f"{readable(name)!r} came without a plain list of {datatype} as its data")
    if len(data) != _count(name, shape):
        raise MalformedAnswer(f"{readable(name)!r} came with {len(data)} values for shape {_said(shape)}")
    try:
        with np.errstate(over="ignore"):  # too large for float32 is infinite, which whoever reads it refuses
            array: NDArray[Any] = np.array(data, dtype).reshape(shape)
    except (OverflowError, ValueError) as error:
        raise MalformedAnswer(f"{readable(name)!r} came with values that are no {datatype}: {error}") from None
    return array


def _count(name: str, shape: Sequence[Any]) -> int:
    if len(shape) > 8 or any(type(size) is not int or size < 0 for size in shape):
        raise MalformedAnswer(f"{readable(name)!r} came with shape {_said(shape)}")
    return math.prod(shape)


def _said(shape: Sequence[Any]) -> str:
    return readable(str(list(shape[:9])))


def readable(text: str) -> str:
    """Return a text of somebody else in one line that no terminal or log takes for more than text."""
    shown = text if len(text) <= _LONGEST_SAID else text[:_LONGEST_SAID] + "..."
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in shown)
