"""The file of an item index: safetensors, written whole or not at all, and mapped rather than read.

The format (a length, a JSON header, the tensors) is written and parsed here so that `load` copies nothing, and so that
the embeddings start on a cache line. Any safetensors reader can open the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuserec.files import replacing_file
from fuserec.kernels._arrays import FloatArray, IntArray

FORMAT = "fuserec-index"
VERSION = "1"
_CACHE_LINE_BYTES = 64
_MAX_HEADER_BYTES = 1 << 20  # two tensors and six strings; a longer header is not ours


@dataclass(frozen=True, eq=False)
class Stored:
    """What the file holds: ids (N,) int64 ascending, embeddings (N, D) float32, metric, largest absolute value."""

    ids: IntArray
    embeddings: FloatArray
    metric: str
    max_abs: float


def write(path: Path, stored: Stored) -> None:
    """Write `stored` to `path`; an older file there is replaced in one step."""
    rows, dim = stored.embeddings.shape
    ids_bytes = stored.ids.nbytes
    header = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "metric": stored.metric,
            "rows": str(rows),
            "dim": str(dim),
            "max_abs": repr(stored.max_abs),
        },
        "item_ids": {"dtype": "I64", "shape": [rows], "data_offsets": [0, ids_bytes]},
        "embeddings": {
            "dtype": "F32",
            "shape": [rows, dim],
            "data_offsets": [ids_bytes, ids_bytes + stored.embeddings.nbytes],
        },
    }
    text = json.dumps(header).encode()
    # Spaces may pad the header: the ids come out on 8 bytes and the embeddings on a cache line.
    text += b" " * (-(8 + len(text) + ids_bytes) % _CACHE_LINE_BYTES)
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        np.ascontiguousarray(stored.ids, "<i8").tofile(file)
        np.ascontiguousarray(stored.embeddings, "<f4").tofile(file)


def read(path: Path) -> Stored:
    """Map the file at `path`; the arrays are read-only views of it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an item index, of another version, truncated, or at odds with itself.
    """
    header, start = _read_header(path)
    meta = header.get("__metadata__")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        came = meta.get("format") if isinstance(meta, dict) else None
        raise ValueError(f"{path}: got format {came!r}, expected {FORMAT!r}")
    if meta.get("version") != VERSION:
        raise ValueError(f"{path}: got version {meta.get('version')!r}, expected {VERSION!r}; build the index again")
    try:
        rows, dim, max_abs = int(meta["rows"]), int(meta["dim"]), float(meta["max_abs"])
        metric = meta["metric"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: got metadata {meta}, expected rows, dim, max_abs and metric") from error
    if rows < 1 or dim < 1 or metric not in ("dot", "cosine") or not math.isfinite(max_abs):
        raise ValueError(f"{path}: got metadata {meta}, expected rows and dim above 0, metric dot or cosine")
    ids_bytes, all_bytes = 8 * rows, 8 * rows + 4 * rows * dim
    _check_tensor(path, header, "item_ids", {"dtype": "I64", "shape": [rows], "data_offsets": [0, ids_bytes]})
    expected = {"dtype": "F32", "shape": [rows, dim], "data_offsets": [ids_bytes, all_bytes]}
    _check_tensor(path, header, "embeddings", expected)
    if path.stat().st_size != start + all_bytes:
        raise ValueError(f"{path}: got {path.stat().st_size} bytes, expected {start + all_bytes}; it may be truncated")
    raw = np.memmap(path, np.uint8, mode="r", offset=0)[start:].view(np.ndarray)
    ids = raw[:ids_bytes].view("<i8")
    if ids[0] < 0 or not np.all(ids[1:] > ids[:-1]):
        raise ValueError(f"{path}: got item ids out of order, expected them ascending from 0 or above")
    return Stored(ids, raw[ids_bytes:].view("<f4").reshape(rows, dim), metric, max_abs)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header and where the data starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(
                f"{path}: got {size} bytes and a header length of {length}, expected a safetensors file with a header "
                f"of at most {_MAX_HEADER_BYTES}"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: got a header that is not JSON, expected a safetensors file") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: got a header of type {type(header).__name__}, expected a JSON object")
    return header, 8 + length


def _check_tensor(path: Path, header: dict[str, Any], name: str, expected: dict[str, Any]) -> None:
    if header.get(name) != expected:
        raise ValueError(f"{path}: got {name} as {header.get(name)}, expected {expected}")
