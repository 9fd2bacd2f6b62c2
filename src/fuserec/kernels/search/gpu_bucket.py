"""The fixed shape of a search on a GPU: what is the same for many searches is captured once and replayed.

A search fits the bucket that is as large or larger in every size; what is not used of it is masked. Pure functions of
sizes, like `gpu_config`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from fuserec.kernels.search.gpu_config import power_of_two

Kind = Literal["dense", "lookup", "bag"]

# A larger search runs by the same launches, without a graph.
LARGEST_BATCH: Final = 1024
KS: Final = (16, 128, 1024)
LONGEST: Final = (0, 16, 128, 1024, 8192)
MOST_TERMS: Final = 1 << 16
MOST_EXCLUDED: Final = 1 << 20

_SECTION_BYTES = 256  # sections begin on such a multiple, as what torch allocates does


@dataclass(frozen=True)
class GpuSettings:
    """How a device index uses its memory.

    Attributes:
        candidate_bytes: What the buffers of one search may take on the device; a batch that would take more is answered
            in parts. A single query takes what it must.
        graphs: How many shapes of searches keep their buffers and their CUDA graph; the least recently used go first.
            0 for no graphs.
        kept_bytes: What those may take together.
    """

    candidate_bytes: int = 1 << 30
    graphs: int = 32
    kept_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if self.candidate_bytes < 1:
            raise ValueError(f"invalid candidate_bytes={self.candidate_bytes}: must be at least 1")
        if self.graphs < 0 or self.kept_bytes < 0:
            raise ValueError(f"invalid graphs={self.graphs}, kept_bytes={self.kept_bytes}: must be at least 0")


@dataclass(frozen=True)
class Bucket:
    """Sizes and flags of a search that decide what is launched.

    Attributes:
        kind: "dense": a vector for each query. "lookup": rows of a table by number. "bag": bags of rows.
        batch: Room for so many queries.
        k: Room for so many items.
        is_resident: The table lies on the device; otherwise what is needed of it comes with the search.
        terms: Room for so many rows of bags.
        weighted: Bags have weights.
        longest: A query excludes at most so many rows; 0 for no lists.
        excluded: Room for so many of all queries.
        seen: Each query has a resident list besides.
        masks: Masks of allowed rows: 0, 1 for all queries, or `batch`.
        is_captured: It is of the sizes that are kept and replayed.
    """

    kind: Kind
    batch: int
    k: int
    is_resident: bool = False
    terms: int = 0
    weighted: bool = False
    longest: int = 0
    excluded: int = 0
    seen: bool = False
    masks: int = 0
    is_captured: bool = False


@functools.lru_cache(maxsize=4096)  # asked of every search, and most are alike
def choose_bucket(exact: Bucket) -> Bucket:
    """Return the bucket that a search of exactly these sizes runs in; these sizes where no bucket is as large."""
    batch = power_of_two(exact.batch)
    k = next((k for k in KS if k >= exact.k), None)
    longest = next((longest for longest in LONGEST if longest >= exact.longest), None)
    terms = power_of_two(max(16, exact.terms)) if exact.kind == "bag" else 0
    if batch > LARGEST_BATCH or k is None or longest is None or terms > MOST_TERMS or batch * longest > MOST_EXCLUDED:
        return replace(exact, is_captured=False)
    masks = batch if exact.masks > 1 else exact.masks
    return replace(
        exact, batch=batch, k=k, terms=terms, longest=longest, excluded=batch * longest, masks=masks, is_captured=True
    )


@dataclass(frozen=True)
class Section:
    """One array in a block of bytes."""

    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + self.shape[0] * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize


def input_sections(bucket: Bucket, rows: int, dim: int) -> dict[str, Section]:
    """Return what travels to the device with a search, in order; that of variable length comes last.

    Args:
        bucket: The shape.
        rows: Items, N.
        dim: Columns, D.
    """
    batch = bucket.batch
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"sizes": ((2,), "int64")}  # queries, and items wanted of each
    if bucket.kind == "dense" and not bucket.is_resident:
        shapes["table"] = ((batch, dim), "float32")
    if bucket.kind == "lookup":
        shapes["ids"] = ((batch,), "int64")
    if bucket.kind == "bag":
        shapes["bags"] = ((batch + 1,), "int64")
    if bucket.seen:
        shapes["lists"] = ((batch,), "int64")
    if bucket.masks:
        shapes["allow"] = ((bucket.masks, rows), "uint8")
    if bucket.longest:
        shapes["out_offsets"] = ((batch + 1,), "int64")
        shapes["out_rows"] = ((max(1, bucket.excluded),), "int64")
    if bucket.kind == "bag":
        shapes["ids"] = ((max(1, bucket.terms),), "int64")
        if bucket.weighted:
            shapes["weights"] = ((max(1, bucket.terms),), "float32")
    if bucket.kind == "bag" and not bucket.is_resident:
        shapes["table"] = ((max(1, bucket.terms), dim), "float32")
    return _sections(shapes)


def output_sections(bucket: Bucket) -> dict[str, Section]:
    """Return what travels back: the sum of |q| of each query, flags, rows scored, scores and item ids."""
    batch, k = bucket.batch, bucket.k
    return _sections(
        {
            "magnitudes": ((batch,), "float64"),
            "flags": ((batch,), "int32"),
            "rescored": ((batch,), "int32"),
            "found_ids": ((batch, k), "int64"),
            "scores": ((batch, k), "float32"),
        }
    )


def scratch_sections(bucket: Bucket, width: int, n_orders: int, capacity: int) -> dict[str, Section]:
    """Return what stays on the device.

    Args:
        bucket: The shape.
        width: Columns of a query, padded.
        n_orders: Sampled maxima of a query.
        capacity: Keys that a query has room for.
    """
    batch = bucket.batch
    return _sections(
        {
            "queries": ((batch, width), "float32"),
            "largests": ((batch,), "float32"),
            "lengths": ((batch,), "float32"),
            "floors": ((batch,), "float32"),
            "counts": ((batch,), "int32"),
            "n_picked": ((batch,), "int32"),
            "sampled": ((batch, n_orders), "int32"),
            "orders": ((batch, capacity), "int32"),
            "keys": ((batch, capacity), "int64"),
            "picked": ((batch, capacity), "int64"),
        }
    )


def total_bytes(sections: dict[str, Section]) -> int:
    """Return the bytes of a block of these sections."""
    return max(section.stop for section in sections.values())


def _sections(shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Section]:
    found: dict[str, Section] = {}
    at = 0
    for name, (shape, dtype) in shapes.items():
        found[name] = Section(at, shape, dtype)
        at = -(-found[name].stop // _SECTION_BYTES) * _SECTION_BYTES
    return found
