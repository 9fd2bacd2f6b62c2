"""What a search asks with: query vectors, rows of a table by id, or pooled bags of rows.

All three become a `Pool`, the one form that kernels read: query `b` is pooled from the rows
`table[ids[offsets[b]:offsets[b + 1]]]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fuserec.kernels._arrays import (
    FloatArray,
    IntArray,
    as_array,
    as_float_matrix,
    as_int_vector,
    as_offsets,
    as_table,
    counted,
    frozen,
    is_on_device,
)

_NO_WEIGHTS: FloatArray = frozen(np.empty(0, np.float32))


def _check_ids(ids: IntArray, rows: int, name: str) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= rows))
    if wrong.size:
        at = int(wrong[0])
        raise ValueError(f"{name}: got {ids[at]} at position {at}, expected 0 to {rows - 1} (rows of the table)")


@dataclass(frozen=True, eq=False)
class Lookup:
    """Queries that are rows of a table, gathered inside the kernel.

    Attributes:
        table: (U, D) float32 or float16. Only the rows that `ids` names are read, so only they must be finite. A
            contiguous float32 tensor on a GPU stays there, for the "cuda" backend alone; of any other table the rows
            named travel with each search.
        ids: (B,) integers in [0, U): query `b` is `table[ids[b]]`.

    Raises:
        ValueError: A shape or dtype is wrong, or an id is out of range.
    """

    table: Any
    ids: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", as_table(self.table, "Lookup.table"))
        object.__setattr__(self, "ids", as_int_vector(self.ids, "Lookup.ids"))
        _check_ids(self.ids, len(self.table), "Lookup.ids")


@dataclass(frozen=True, eq=False)
class Bag:
    """Queries that are pooled from bags of table rows, inside the kernel: histories of items, for example.

    Attributes:
        table: (V, D), as in `Lookup`.
        ids: (T,) integers in [0, V), bag after bag; a repeated id counts as often as it is there.
        offsets: (B + 1,) integers: bag `b` is `ids[offsets[b]:offsets[b + 1]]`.
        weights: (T,) finite floats, or None. With weights a query is the weighted sum of its bag; without, the mean.
            An empty bag is the zero vector, to which all items score 0.

    Raises:
        ValueError: A shape or dtype is wrong, an id is out of range, or the offsets do not partition the ids.
    """

    table: Any
    ids: IntArray
    offsets: IntArray
    weights: FloatArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", as_table(self.table, "Bag.table"))
        object.__setattr__(self, "ids", as_int_vector(self.ids, "Bag.ids"))
        _check_ids(self.ids, len(self.table), "Bag.ids")
        object.__setattr__(self, "offsets", as_offsets(self.offsets, len(self.ids), "Bag.offsets"))
        if self.weights is not None:
            object.__setattr__(self, "weights", _as_weights(self.weights, len(self.ids)))


def _as_weights(value: object, total: int) -> FloatArray:
    weights = as_array(value, "Bag.weights")
    if weights.shape != (total,):
        raise ValueError(f"Bag.weights: got shape {weights.shape}, expected one for each id, ({total},)")
    if weights.dtype.kind != "f":
        raise ValueError(f"Bag.weights: got dtype {weights.dtype}, expected a float dtype")
    weights = weights.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(weights))
    if wrong.size:
        raise ValueError(f"Bag.weights: got {weights[wrong[0]]} at position {wrong[0]}, expected finite float32")
    return weights


@dataclass(frozen=True, eq=False)
class Pool:
    """The one form of a query that every backend reads.

    Attributes:
        kind: What the caller gave; a backend may take a shorter way for "dense" and "lookup", where bags hold one row.
        table: (V, D) float32, C-contiguous; a numpy array, or a tensor that was on a GPU already.
        ids: (T,) int64 rows of `table`.
        offsets: (B + 1,) int64.
        weights: (T,) float32 for a weighted sum; empty for the mean.
    """

    kind: Literal["dense", "lookup", "bag"]
    table: Any
    ids: IntArray
    offsets: IntArray
    weights: FloatArray

    @property
    def batch(self) -> int:
        """Number of queries, B."""
        return len(self.offsets) - 1


def as_pool(query: object, dim: int) -> Pool:
    """Return `query` in the form that the kernels read.

    Args:
        query: (B, dim) float32 or float16 array or tensor, of any strides; or a `Lookup`; or a `Bag`.
        dim: Width of the item table.

    Raises:
        ValueError: The query has another shape or dtype.
    """
    if isinstance(query, Lookup | Bag):
        _check_width(query.table, dim, f"{type(query).__name__}.table")
        table, ids = _float32_rows(query.table, query.ids)
        if isinstance(query, Lookup):
            return Pool("lookup", table, ids, counted(len(ids) + 1), _NO_WEIGHTS)
        weights = _NO_WEIGHTS if query.weights is None else query.weights
        return Pool("bag", table, ids, query.offsets, weights)
    array = as_float_matrix(query, "query")
    _check_width(array, dim, "query")
    dense = np.ascontiguousarray(array, np.float32)
    return Pool("dense", dense, counted(len(dense)), counted(len(dense) + 1), _NO_WEIGHTS)


def _check_width(array: Any, dim: int, name: str) -> None:
    if array.shape[1] != dim:
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected {dim} columns as in the item index")


def _float32_rows(table: Any, ids: IntArray) -> tuple[Any, IntArray]:
    """Return a C-contiguous float32 table and ids into it; a table of another make is not converted whole."""
    if is_on_device(table) or (table.dtype == np.float32 and table.flags.c_contiguous):
        return table, ids
    return np.ascontiguousarray(table[ids], np.float32), np.arange(len(ids))
