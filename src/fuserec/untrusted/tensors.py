"""The header of a safetensors file: which tensors there are, and that the file holds just those.

8 bytes   length of the header, little-endian
header    JSON: name to {"dtype", "shape", "data_offsets": [start, stop]}; "__metadata__": texts by name
data      the tensors without gaps; offsets count from here
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fuserec.untrusted.documents import parse_json

# Some hundred bytes a tensor: the largest language models have tens of thousands.
MAX_HEADER_BYTES: Final = 16 * 2**20
_LENGTH_BYTES: Final = 8
_MAX_DIMENSIONS: Final = 64  # of torch
_DTYPE_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of the file.

    Attributes:
        dtype: safetensors' name of it, such as F32.
        shape: none of it negative.
        start: place of its first byte after the header.
        stop: place after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds, which is what it has room for.

    Attributes:
        tensors: by name.
        metadata: texts by name.
        data_start: place in the file from where the offsets of the tensors count.
    """

    tensors: dict[str, TensorRecord]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path, error: type[ValueError], limit_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read and check the header; of the data nothing is read.

    Raises:
        FileNotFoundError: There is no such file.
        error: It is not a safetensors file, its tensors overlap, leave gaps, are not of their size, or do not end
            where the file does.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise error(f"{path} is not a file; expected a safetensors file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, limit_bytes):
            raise error(
                f"{path}: got {size} bytes and a header length of {length}, expected a safetensors file with a header "
                f"of at most {limit_bytes}"
            )
        text = file.read(length)
    try:
        document = parse_json(text)
        metadata = _metadata(document.pop("__metadata__", {}))
        tensors = {name: _record(name, value) for name, value in document.items()}
    except ValueError as reason:
        raise error(f"{path}: got a header that {reason}, in place of a safetensors header") from reason
    start = _LENGTH_BYTES + length
    _check_places(path, tensors, size - start, error)
    return Header(tensors, metadata, start)


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("has __metadata__ that is not texts by name")
    return value


def _record(name: str, value: Any) -> TensorRecord:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"describes tensor {name!r} as {value!r:.200}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise ValueError(f"gives tensor {name!r} the dtype {dtype!r:.40}, expected one of {', '.join(_DTYPE_BITS)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"gives tensor {name!r} the shape {shape!r:.80} and the offsets {offsets!r:.80}")
    start, stop = offsets
    expected = math.prod(shape) * _DTYPE_BITS[dtype] // 8
    if stop - start != expected:
        raise ValueError(f"gives tensor {name!r} {stop - start} bytes, expected {expected} for {dtype} {shape!r:.80}")
    return TensorRecord(dtype, tuple(shape), start, stop)


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MAX_DIMENSIONS:
        return False
    return all(type(size) is int and size >= 0 for size in value)  # not isinstance: to Python a bool is an int


def _check_places(path: Path, tensors: dict[str, TensorRecord], size: int, error: type[ValueError]) -> None:
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != at:
            raise error(f"{path}: got tensor {name!r} at byte {tensor.start} of the data, expected it at {at}")
        at = tensor.stop
    if at != size:
        raise error(f"{path}: got {size} bytes of tensors, expected {at}; it may be truncated")
