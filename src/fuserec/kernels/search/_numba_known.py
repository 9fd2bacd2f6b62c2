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
UNPROVEN: Final = 1  # a query was not proven, or has no sound score: it is to be searched by the long way
OUT_OF_RANGE: Final = 2


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


@jit()
def search_known(
    known: Known, table: Table, plan: Plan, lists: IntArray, rows: IntArray, most: int, shortest: float, longest: float
) -> tuple[int, Answers]:
    """Search for the vectors `rows` without what the `lists` exclude, (B,) int64 each.

    `most` queries go over the table together. A query has sound scores if its absolute values sum to `shortest` or
    more, and less than `longest`. Returns what became of it, and the answers with item ids in place of rows.
    """
    batch, k = len(lists), plan.k
    answers = Answers(
        np.empty((batch, k), np.int64), np.empty((batch, k), np.float32), np.empty(batch, np.float64),
        np.empty(batch, np.bool_), np.empty(batch, np.int64),
    )  # fmt: skip
    for b in range(batch):
        if not (0 <= lists[b] < len(known.offsets) - 1 and 0 <= rows[b] < len(known.vectors)):
            return OUT_OF_RANGE, answers
    bags = Bags(known.vectors, rows, np.arange(batch + 1), np.empty(0, np.float32))
    out = _excluded(known, lists, table.items.shape[0])
    none = Heaps(np.empty((1, 1, 0), np.int64), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))
    for first in range(0, batch, most):
        size = min(most, batch - first)
        asked, kept, maxima = prepare(bags, first, first + size, 1, plan, table, answers)
        span = Span(0, size, 0, len(table.codes))
        maxima[0] = -np.inf
        sample(table, asked, out, first, span, plan.stride, plan.tile, maxima[0])
        for q in range(size):
            if asked.units[q] > 0:  # see `_numba_run.work`
                excluded = out.offsets[first + q + 1] - out.offsets[first + q]
                estimate(maxima, asked, q, k + excluded, plan.stride, kept)
        scan(table, asked, out, first, span, 0, k, kept, none, plan.tile, False)
        for q in range(size):
            rescore(table.items, asked, kept, q, first + q, answers)
    for b in range(batch):
        if not (answers.certified[b] and shortest <= answers.magnitudes[b] < longest):
            return UNPROVEN, answers
        for place in range(k):
            row = answers.rows[b, place]
            answers.rows[b, place] = NO_ID if row < 0 else known.item_ids[row]
    return PROVEN, answers


@jit()
def _excluded(known: Known, lists: IntArray, n_rows: int) -> Out:
    """Return the filter of a search: copies of some lists, end to end."""
    offsets = np.zeros(len(lists) + 1, np.int64)
    for b in range(len(lists)):
        offsets[b + 1] = offsets[b] + known.offsets[lists[b] + 1] - known.offsets[lists[b]]
    rows = np.empty(offsets[-1], np.int64)
    for b in range(len(lists)):
        rows[offsets[b] : offsets[b + 1]] = known.rows[known.offsets[lists[b]] : known.offsets[lists[b] + 1]]
    return Out(offsets, rows, np.empty((0, n_rows), np.bool_))
