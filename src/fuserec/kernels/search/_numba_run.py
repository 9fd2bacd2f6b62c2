"""The compiled functions that a search calls."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray
from fuserec.kernels.search._numba_candidates import Candidates, allocate_candidates
from fuserec.kernels.search._numba_codes import Heaps, Span, Table, scan
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked, allocate_asked, ask
from fuserec.kernels.search._numba_rescore import Answers, rescore
from fuserec.kernels.search._numba_sample import estimate, sample
from fuserec.kernels.search._numba_score import Bags, Out

EVERY: Final = 0
SAMPLE: Final = 1  # look at some rows
ESTIMATE: Final = 2  # tell the threshold from what was seen
SIFT: Final = 3  # collect candidates
RESCORE: Final = 4  # turn them into answers
REFINE: Final = 5  # search once more, scoring each row that the codes let through


class Plan(NamedTuple):
    """What holds for all parts of a search; `CpuConfig` describes the last four.

    Attributes:
        k: Rows asked for.
        normalize: Whether queries are scaled to unit length.
        tile: Queries a tile.
        stride: Tiles of rows for one in the sample.
        lanes: Maxima of the sample.
        capacity: Candidates of a query and a part.
    """

    k: int
    normalize: bool
    tile: int
    stride: int
    lanes: int
    capacity: int


class Prepared(NamedTuple):
    """The queries of a part, their candidates, and the maxima (P, B, L) float32 of the sample."""

    asked: Asked
    kept: Candidates
    maxima: FloatArray


@jit()
def prepare(bags: Bags, first: int, end: int, parts: int, plan: Plan, table: Table, answers: Answers) -> Prepared:
    """Pool and code the queries `first` to `end` of the batch, and make room for what a search keeps of them."""
    size = end - first
    asked = allocate_asked(size, table.items.shape[1], table.codes.shape[1], plan.tile)
    for q in range(size):
        answers.magnitudes[first + q] = ask(bags, first + q, q, plan.normalize, asked)
    maxima = np.empty((parts, size, plan.lanes), np.float32)
    return Prepared(asked, allocate_candidates(parts, size, plan.k, plan.capacity), maxima)


# One function for every step, as each function that numba is called with is optimised anew with all that it calls: five
# of them took 45 s to compile, one takes 30.
@jit()
def work(
    step: int, task: int, tasks: int, table: Table, bags: Bags, out: Out, first: int, end: int, groups: IntArray,
    plan: Plan, prepared: Prepared, heaps: Heaps, answers: Answers,
) -> None:  # fmt: skip
    """Do one step for the queries `first` to `end` of the batch, or `EVERY` one in turn, and prepare them first.

    A task of `SAMPLE`, `SIFT` and `REFINE` is a part of the rows; one of `ESTIMATE` and `RESCORE` is every `tasks`-th
    query.
    """
    queries = end - first
    if step == EVERY:
        prepared = prepare(bags, first, end, 1, plan, table, answers)
    asked, kept, maxima = prepared
    if step in (EVERY, SAMPLE, SIFT, REFINE):
        span = Span(0, queries, groups[task], groups[task + 1])
    if step in (EVERY, SAMPLE):
        maxima[task] = -np.inf
        sample(table, asked, out, first, span, plan.stride, plan.tile, maxima[task])
    if step in (EVERY, ESTIMATE):
        for q in range(task, queries, tasks):
            # The rows that its list excludes were in the sample, and may be its best. A query of zeros has no floor: it
            # would be what every row scores.
            if asked.units[q] > 0:
                excluded = out.offsets[first + q + 1] - out.offsets[first + q]
                estimate(maxima, asked, q, plan.k + excluded, plan.stride, kept)
    if step in (EVERY, SIFT, REFINE):
        scan(table, asked, out, first, span, task, plan.k, kept, heaps, plan.tile, step == REFINE)
    if step in (EVERY, RESCORE):
        for q in range(task, queries, tasks):
            rescore(table.items, asked, kept, q, first + q, answers)
