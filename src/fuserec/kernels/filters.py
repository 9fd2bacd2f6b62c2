"""Which rows a query may return: `exclude` and `allow`, turned from item ids into rows before the scan.

A kernel drops a row before it looks at its score, so nothing is fetched beyond k and an excluded id cannot come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fuserec.kernels._arrays import BoolArray, IntArray, as_array, as_int_vector, as_offsets


@dataclass(frozen=True, eq=False)
class RowFilter:
    """Rows that are out, for each query.

    Attributes:
        offsets: (B + 1,) int64: the rows excluded for query `b` are `rows[offsets[b]:offsets[b + 1]]`.
        rows: (S,) int64, ascending and without repeats within a query.
        allow: (0, N), (1, N) or (B, N) bool: no mask, one for the batch, or one for each query.
    """

    offsets: IntArray
    rows: IntArray
    allow: BoolArray


class ExcludedRows(NamedTuple):
    """What may not come back, as rows of the index, found out before: see `ItemIndex.excluded_rows`.

    Attributes:
        rows: (S,) int64, ascending and without repeats within a query.
        offsets: (B + 1,) int64: those of query `b` are `rows[offsets[b]:offsets[b + 1]]`.
    """

    rows: IntArray
    offsets: IntArray


def as_row_filter(exclude: object, allow: object, *, ids: IntArray, batch: int) -> RowFilter:
    """Return the filter of one search.

    Args:
        exclude: None; a set or frozenset of item ids for the whole batch; a tuple `(ids, offsets)` in CSR form; a
            list (or 2-D array) of `batch` vectors of item ids; or `ExcludedRows`. Ids that the index does not hold are
            ignored.
        allow: None, or a bool mask of shape (N,) or (batch, N), in the order of `ids`.
        ids: (N,) int64 item ids, ascending.
        batch: Number of queries.

    Raises:
        ValueError: `exclude` or `allow` has another shape or dtype.
    """
    mask = _as_mask(allow, len(ids), batch)
    no_rows, no_offsets = np.empty(0, np.int64), np.zeros(batch + 1, np.int64)
    if exclude is None:
        return RowFilter(no_offsets, no_rows, mask)
    if isinstance(exclude, set | frozenset):
        rows, known = rows_of(as_int_vector(list(exclude), "exclude"), ids)
        mask = np.ones((1, len(ids)), np.bool_) if len(mask) == 0 else mask.copy()
        mask[:, rows[known]] = False
        return RowFilter(no_offsets, no_rows, mask)
    made = _checked_rows(exclude, len(ids), batch) if isinstance(exclude, ExcludedRows) else None
    rows, offsets = made or excluded_rows(*_as_csr(exclude, batch), ids)
    return RowFilter(offsets, rows, mask)


def excluded_rows(excluded: IntArray, offsets: IntArray, ids: IntArray) -> ExcludedRows:
    """Return the rows of lists of item ids: those of list `b` are `excluded[offsets[b]:offsets[b + 1]]`."""
    batch = len(offsets) - 1
    rows, known = rows_of(excluded, ids)
    query = np.repeat(np.arange(batch), np.diff(offsets))
    # One sort orders all queries at once and drops the repeats.
    pairs = np.unique(query[known] * len(ids) + rows[known])
    counts = np.bincount(pairs // len(ids), minlength=batch)
    return ExcludedRows(pairs % len(ids), np.concatenate(([0], np.cumsum(counts))).astype(np.int64))


def _checked_rows(exclude: ExcludedRows, n_rows: int, batch: int) -> ExcludedRows:
    """Return `exclude`, if that is what it is: with rows in another order the kernels would let some of them pass."""
    rows, offsets = exclude
    if len(offsets) != batch + 1 or offsets[0] != 0 or offsets[-1] != len(rows):
        raise ValueError(f"exclude: got offsets for {len(offsets) - 1} queries and {len(rows)} rows, expected {batch}")
    if not len(rows):
        return exclude
    falls = rows[1:] <= rows[:-1]
    # Where a list begins, the one before it may have ended at any row.
    begins = offsets[1:-1]
    falls[begins[(begins > 0) & (begins < len(rows))] - 1] = False
    if falls.any() or rows.min() < 0 or rows.max() >= n_rows:
        raise ValueError(f"exclude: got rows that do not ascend within a query, or beyond 0..{n_rows - 1}")
    return exclude


def rows_of(item_ids: IntArray, ids: IntArray) -> tuple[IntArray, BoolArray]:
    """Return the row of every item id, and whether the index holds it."""
    rows = np.minimum(np.searchsorted(ids, item_ids), len(ids) - 1)
    return rows, ids[rows] == item_ids


def _as_csr(exclude: object, batch: int) -> tuple[IntArray, IntArray]:
    if isinstance(exclude, tuple):
        if len(exclude) != 2:
            raise ValueError(f"exclude: got a tuple of {len(exclude)}, expected (ids, offsets); a list is per query")
        excluded = as_int_vector(exclude[0], "exclude ids")
        offsets = as_offsets(exclude[1], len(excluded), "exclude offsets")
        if len(offsets) != batch + 1:
            raise ValueError(f"exclude offsets: got {len(offsets)}, expected batch + 1 = {batch + 1}")
        return excluded, offsets
    if not isinstance(exclude, list | np.ndarray) or (isinstance(exclude, np.ndarray) and exclude.ndim != 2):
        came = f"an array of shape {exclude.shape}" if isinstance(exclude, np.ndarray) else type(exclude).__name__
        raise ValueError(f"exclude: got {came}, expected a set, (ids, offsets), or a list of {batch} id vectors")
    if len(exclude) != batch:
        raise ValueError(f"exclude: got {len(exclude)} id vectors, expected one for each of {batch} queries")
    vectors = [as_int_vector(vector, f"exclude[{at}]") for at, vector in enumerate(exclude)]
    offsets = np.concatenate(([0], np.cumsum([len(vector) for vector in vectors]))).astype(np.int64)
    return np.concatenate([np.empty(0, np.int64), *vectors]), offsets


def _as_mask(allow: object, rows: int, batch: int) -> BoolArray:
    if allow is None:
        return np.empty((0, rows), np.bool_)
    mask = as_array(allow, "allow")
    if mask.dtype != np.bool_ or mask.shape not in ((rows,), (batch, rows)):
        raise ValueError(
            f"allow: got shape {mask.shape} of {mask.dtype}, expected bool of shape ({rows},) or ({batch}, {rows})"
        )
    return np.ascontiguousarray(np.atleast_2d(mask))
