"""The file of an item index: safetensors, written whole or not at all, and mapped rather than read.

The format (a length, a JSON header, the tensors) is written here, and not read by the library of that name, so that
`load` copies nothing, and so that the codes and the embeddings start on a cache line. Any safetensors reader can open
the file.

`read` looks at the header, the size of the file and the ends of the ids, and at nothing else, so that 10M rows open in
milliseconds. What is inside the tensors is taken on trust; a manifest's SHA-256 is what tells of damage there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuserec.errors import BundleError
from fuserec.files import replacing_file
from fuserec.kernels._arrays import CACHE_LINE_BYTES, Array, FloatArray, IntArray
from fuserec.kernels._mapped import MappedFile
from fuserec.kernels.packed import PackedCodes, packed_shapes
from fuserec.untrusted.tensors import Header, TensorRecord, read_header

FORMAT = "fuserec-index"
VERSION = "2"
_MAX_HEADER_BYTES = 1 << 20  # six tensors and seven strings; a longer header is not ours
_DTYPES = {"I64": "<i8", "F32": "<f4", "U8": "u1"}


@dataclass(frozen=True, eq=False)
class Stored:
    """What the file holds.

    Attributes:
        ids: (N,) int64, ascending.
        embeddings: (N, D) float32.
        codes: Their int8 codes as the CPU reads them, or None.
        metric: "dot" or "cosine".
        max_abs: Largest absolute value in `embeddings`.
        file: Where all of it is mapped from; None for what is to be written.
    """

    ids: IntArray
    embeddings: FloatArray
    codes: PackedCodes | None
    metric: str
    max_abs: float
    file: MappedFile | None = None


def _as_header(tensor: TensorRecord) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [tensor.start, tensor.stop]}


def _plan(rows: int, dim: int, codes: str) -> dict[str, TensorRecord]:
    """Return the tensors in file order.

    The small ones, of 8-byte multiples, come first: the header is padded so that they end on a cache line. The codes,
    scales and residuals are whole cache lines, so that the embeddings begin on one too.
    """
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"item_ids": ("I64", (rows,))}
    if codes == "int8":
        packed = packed_shapes(rows, dim)
        shapes["reach"] = ("F32", packed["reach"])
        shapes["codes"] = ("U8", packed["codes"])
        shapes["scale"] = ("F32", packed["scale"])
        shapes["residual"] = ("F32", packed["residual"])
    shapes["embeddings"] = ("F32", (rows, dim))
    tensors: dict[str, TensorRecord] = {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        stop = at + math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        tensors[name] = TensorRecord(dtype, shape, at, stop)
        at = stop
    return tensors


def _aligned_bytes(tensors: dict[str, TensorRecord]) -> int:
    """Return the size of what must end on a cache line."""
    return (tensors.get("reach") or tensors["item_ids"]).stop


def write(path: Path, stored: Stored) -> None:
    """Write `stored` to `path`; an older file there is replaced in one step."""
    rows, dim = stored.embeddings.shape
    kind = "none" if stored.codes is None else "int8"
    tensors = _plan(rows, dim, kind)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "metric": stored.metric,
            "codes": kind,
            "rows": str(rows),
            "dim": str(dim),
            "max_abs": repr(stored.max_abs),
        }
    }
    header |= {name: _as_header(tensor) for name, tensor in tensors.items()}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text) + _aligned_bytes(tensors)) % CACHE_LINE_BYTES)  # spaces may pad a header
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, tensor in tensors.items():
            array: Array = stored.ids if name == "item_ids" else getattr(_holder(stored, name), name)
            np.ascontiguousarray(array, _DTYPES[tensor.dtype]).tofile(file)


def _holder(stored: Stored, name: str) -> Stored | PackedCodes:
    """Return what has the array `name` as an attribute."""
    return stored if name == "embeddings" or stored.codes is None else stored.codes


def read(path: Path) -> Stored:
    """Map the file at `path`; the arrays are read-only views of it.

    Raises:
        FileNotFoundError: There is no such file.
        BundleError: It is not an item index, of another version, truncated, or at odds with itself.
    """
    header = read_header(path, BundleError, _MAX_HEADER_BYTES)
    meta = header.metadata
    if meta.get("format") != FORMAT:
        raise BundleError(f"{path}: got format {meta.get('format')!r}, expected {FORMAT!r}")
    if meta.get("version") != VERSION:
        raise BundleError(f"{path}: got version {meta.get('version')!r}, expected {VERSION!r}; build the index again")
    try:
        rows, dim, max_abs = int(meta["rows"]), int(meta["dim"]), float(meta["max_abs"])
        metric, kind = meta["metric"], meta["codes"]
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path}: got metadata {meta}, expected rows, dim, max_abs, metric and codes") from error
    if rows < 1 or dim < 1 or metric not in ("dot", "cosine") or not math.isfinite(max_abs):
        raise BundleError(f"{path}: got metadata {meta}, expected rows and dim above 0, metric dot or cosine")
    if kind not in ("int8", "none"):
        raise BundleError(f"{path}: got codes {kind!r}, expected 'int8' or 'none'")
    file = MappedFile(path)
    arrays = _tensors_of(file, header, _plan(rows, dim, kind))
    ids = arrays.pop("item_ids")
    if ids[0] < 0 or ids[-1] - ids[0] < rows - 1:
        raise BundleError(f"{path}: got item ids {ids[0]} to {ids[-1]}, expected {rows} ascending ids from 0 or above")
    embeddings = arrays.pop("embeddings")
    codes = PackedCodes(**arrays, rows=rows, dim=dim) if kind == "int8" else None
    return Stored(ids, embeddings, codes, metric, max_abs, file)


def _tensors_of(file: MappedFile, header: Header, tensors: dict[str, TensorRecord]) -> dict[str, Array]:
    """Return a view of the mapped file for each of `tensors`, after checking that the file has just those."""
    path = file.path
    for name in (*tensors, *header.tensors):
        if header.tensors.get(name) != tensors.get(name):
            raise BundleError(f"{path}: got {name} as {header.tensors.get(name)}, expected {tensors.get(name)}")
    raw = file.data[header.data_start :]
    return {
        name: raw[tensor.start : tensor.stop].view(_DTYPES[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }
