"""Which rows a query may return: `exclude` and `allow`, turned from item ids into rows before the scan.

A kernel drops a row before it looks at its score, so nothing is fetched beyond k and an excluded id cannot come back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fuserec.kernels._arrays import (
    BoolArray,
    IntArray,
    as_array,
    as_int_vector,
    as_offsets,
    counted,
    end_to_end,
    frozen,
)


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


class ExcludedRows:
    """Lists of rows that may not come back, found out and checked before any search: see `ItemIndex.excluded_rows`.

    Args:
        rows: (S,) int64, ascending and without repeats within a list; copied.
        offsets: (B + 1,) int64: list `b`, that of query `b`, is `rows[offsets[b]:offsets[b + 1]]`; copied.
        n_rows: Items of the index, N.

    Attributes:
        rows: As given, read-only.
        offsets: As given, read-only.
        n_rows: As given.

    Raises:
        ValueError: The offsets do not partition the rows, or rows are in another order, with which the kernels would
            let some of them pass, or beyond the index.
    """

    __slots__ = ("n_rows", "offsets", "rows")

    def __init__(self, rows: IntArray, offsets: IntArray, n_rows: int) -> None:
        self.rows, self.offsets, self.n_rows = frozen(rows.copy()), frozen(offsets.copy()), n_rows
        as_offsets(self.offsets, len(rows), "exclude offsets")
        falls = self.rows[1:] <= self.rows[:-1]
        # Where a list begins, the one before it may have ended at any row.
        begins = self.offsets[1:-1]
        falls[begins[(begins > 0) & (begins < len(rows))] - 1] = False
        if falls.any() or (len(rows) and (rows.min() < 0 or rows.max() >= n_rows)):
            raise ValueError(f"exclude: got rows that do not ascend within a list, or beyond 0..{n_rows - 1}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, lists: Sequence[int]) -> ExcludedRows:
        """Return some of the lists, 0 to B - 1, in this order: those of the queries of one search.

        Raises:
            ValueError: There is no such list; counted from the end, another one would be taken in its place.
        """
        if len(lists) and not 0 <= min(lists) <= max(lists) < len(self):
            raise ValueError(f"got lists {min(lists)} to {max(lists)}, expected 0 to {len(self) - 1}")
        taken = [self.rows[self.offsets[one] : self.offsets[one + 1]] for one in lists]
        return ExcludedRows._of_checked(*end_to_end(taken), self.n_rows)

    @classmethod
    def _of_checked(cls, rows: IntArray, offsets: IntArray, n_rows: int) -> ExcludedRows:
        """Return lists that are known to be what they should be, and nobody else's to change."""
        made = cls.__new__(cls)
        made.rows, made.offsets, made.n_rows = frozen(rows), frozen(offsets), n_rows
        return made


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
    if isinstance(exclude, ExcludedRows):
        if len(exclude) != batch or exclude.n_rows != len(ids):
            raise ValueError(
                f"exclude: got {len(exclude)} lists over {exclude.n_rows} items, expected {batch} over {len(ids)}"
            )
        return RowFilter(exclude.offsets, exclude.rows, mask)
    no_rows, no_offsets = counted(0), np.zeros(batch + 1, np.int64)
    if exclude is None:
        return RowFilter(no_offsets, no_rows, mask)
    if isinstance(exclude, set | frozenset):
        rows, known = rows_of(as_int_vector(list(exclude), "exclude"), ids)
        mask = np.ones((1, len(ids)), np.bool_) if len(mask) == 0 else mask.copy()
        mask[:, rows[known]] = False
        return RowFilter(no_offsets, no_rows, mask)
    made = excluded_rows(*_as_csr(exclude, batch), ids)
    return RowFilter(made.offsets, made.rows, mask)


def excluded_rows(excluded: IntArray, offsets: IntArray, ids: IntArray) -> ExcludedRows:
    """Return the rows of lists of item ids: those of list `b` are `excluded[offsets[b]:offsets[b + 1]]`."""
    batch = len(offsets) - 1
    rows, known = rows_of(excluded, ids)
    query = np.repeat(np.arange(batch), np.diff(offsets))
    # One sort orders all queries at once and drops the repeats.
    pairs = np.unique(query[known] * len(ids) + rows[known])
    counts = np.bincount(pairs // len(ids), minlength=batch)
    ends = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return ExcludedRows._of_checked(pairs % len(ids), ends, len(ids))


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
    return end_to_end([as_int_vector(vector, f"exclude[{at}]") for at, vector in enumerate(exclude)])


def _as_mask(allow: object, rows: int, batch: int) -> BoolArray:
    if allow is None:
        return _no_mask(rows)
    mask = as_array(allow, "allow")
    if mask.dtype != np.bool_ or mask.shape not in ((rows,), (batch, rows)):
        raise ValueError(
            f"allow: got shape {mask.shape} of {mask.dtype}, expected bool of shape ({rows},) or ({batch}, {rows})"
        )
    return np.ascontiguousarray(np.atleast_2d(mask))


@functools.lru_cache(maxsize=64)
def _no_mask(rows: int) -> BoolArray:
    none: BoolArray = frozen(np.empty((0, rows), np.bool_))
    return none
