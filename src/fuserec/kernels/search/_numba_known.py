"""A search for queries that are known beforehand, whole, in one compiled call.

What `_numba.search` does for one part of a batch, with the look-up of the vectors and of the excluded rows before it
and that of the item ids after it. A call from Python costs as much as the search of a small table, and more after the
caches went cold between two requests: 1,682 rows took 216 us by `ItemIndex.search` and 89 us by this.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.contract import NO_ID
from fuserec.kernels._arrays import FloatArray, IntArray
from fuserec.kernels.search._numba_codes import Heaps, Span, Table, scan
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_rescore import Answers, rescore
from fuserec.kernels.search._numba_run import Plan, prepare
from fuserec.kernels.search._numba_sample import estimate, sample
from fuserec.kernels.search._numba_score import Bags, Out

# What became of a search.
PROVEN: Final = 0
UNPROVEN: Final = 1  # a query was not proven, has no sound score or no such number: the long way finds it out


class Known(NamedTuple):
    """What is known of queries.

    Attributes:
        vectors: (V, D) float32.
        rows: (S,) int64 rows of the items, list after list, ascending within a list.
        offsets: (U + 1,) int64: list `u` is `rows[offsets[u]:offsets[u + 1]]`.
        item_ids: (N,) int64.
    """

    vectors: FloatArray
    rows: IntArray
    offsets: IntArray
    item_ids: IntArray


class Asked(NamedTuple):
    """Who asks.

    Attributes:
        lists: (B,) int64: the list that each query excludes.
        rows: (B,) int64: its vector.
        ids: (E,) int64 item ids that are excluded too, query after query; unknown and repeated ones are fine.
        offsets: (B + 1,) int64: those of query `b` are `ids[offsets[b]:offsets[b + 1]]`.
    """

    lists: IntArray
    rows: IntArray
    ids: IntArray
    offsets: IntArray


@jit()
def search_known(
    known: Known, table: Table, plan: Plan, asked: Asked, most: int, shortest: float, longest: float, answers: Answers
) -> int:
    """Search for B known queries.

    `most` queries go over the table together. A query has sound scores if its absolute values sum to `shortest` or
    more, and less than `longest`. Returns what became of it; the answers have item ids in place of rows. They are given
    and not returned, for each array that numba hands to Python takes a call of Python.
    """
    lists, rows, k = asked.lists, asked.rows, plan.k
    batch = len(lists)
    for b in range(batch):
        if not (0 <= lists[b] < len(known.offsets) - 1 and 0 <= rows[b] < len(known.vectors)):
            return UNPROVEN
    bags = Bags(known.vectors, rows, np.arange(batch + 1), np.empty(0, np.float32))
    out = _excluded(known, asked)
    none = Heaps(np.empty((1, 1, 0), np.int64), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))
    for first in range(0, batch, most):
        size = min(most, batch - first)
        coded, kept, maxima = prepare(bags, first, first + size, 1, plan, table, answers)
        span = Span(0, size, 0, len(table.codes))
        maxima[0] = -np.inf
        sample(table, coded, out, first, span, plan.stride, plan.tile, maxima[0])
        for q in range(size):
            if coded.units[q] > 0:  # see `_numba_run.work`
                excluded = out.offsets[first + q + 1] - out.offsets[first + q]
                estimate(maxima, coded, q, k + excluded, plan.stride, kept)
        scan(table, coded, out, first, span, 0, k, kept, none, plan.tile, False)
        for q in range(size):
            rescore(table.items, coded, kept, q, first + q, answers)
    for b in range(batch):
        if not (answers.certified[b] and shortest <= answers.magnitudes[b] < longest):
            return UNPROVEN
        for place in range(k):
            row = answers.rows[b, place]
            answers.rows[b, place] = NO_ID if row < 0 else known.item_ids[row]
    return PROVEN


@jit()
def _excluded(known: Known, asked: Asked) -> Out:
    """Return the filter of a search: of each query its list, and the rows of what it excludes too, in order."""
    batch, n_rows = len(asked.lists), len(known.item_ids)
    most = len(asked.ids)
    for one in asked.lists:
        most += known.offsets[one + 1] - known.offsets[one]
    rows, offsets = np.empty(most, np.int64), np.zeros(batch + 1, np.int64)
    end = 0
    for b in range(batch):
        first = end
        for at in range(known.offsets[asked.lists[b]], known.offsets[asked.lists[b] + 1]):
            rows[end] = known.rows[at]
            end += 1
        listed = end
        for at in range(asked.offsets[b], asked.offsets[b + 1]):
            row = np.searchsorted(known.item_ids, asked.ids[at])
            if row < n_rows and known.item_ids[row] == asked.ids[at]:
                rows[end] = row
                end += 1
        if end > listed:
            rows[first:end].sort()
            end = _without_repeats(rows, first, end)
        offsets[b + 1] = end
    return Out(offsets, rows[:end], np.empty((0, n_rows), np.bool_))


@jit()
def _without_repeats(rows: IntArray, first: int, end: int) -> int:
    """Close the gaps that the repeats among the ascending `rows[first:end]` leave, and return the new end."""
    last = first
    for at in range(first + 1, end):
        if rows[at] != rows[last]:
            last += 1
            rows[last] = rows[at]
    return last + 1
