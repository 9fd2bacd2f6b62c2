"""The compiled functions that a search calls: pool, scan a part, rescore a part, search a part again."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.kernels._arrays import BoolArray, IntArray
from fuserec.kernels.packed import GROUP
from fuserec.kernels.search._numba_candidates import Candidates, start_at_estimate
from fuserec.kernels.search._numba_codes import Heaps, Span, Table, scan
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked, ask
from fuserec.kernels.search._numba_rescore import rescore
from fuserec.kernels.search._numba_score import Bags, Out

_SAMPLE_STRIDE: Final = 32  # tiles of rows


class Edges(NamedTuple):
    """Edges of the parts of the queries and of the groups of rows."""

    queries: IntArray
    groups: IntArray


class Sifted(NamedTuple):
    """What a first scan yields: keys (B, k), descending; whether they are proven (B,); rows scored for them (B,)."""

    best: IntArray
    certified: BoolArray
    rescored: IntArray


@jit()
def ask_all(bags: Bags, normalize: bool, first: int, asked: Asked) -> None:
    """Pool the queries `first` and on of the batch."""
    for q in range(len(asked.queries)):
        ask(bags, first + q, q, normalize, asked)


@jit()
def sift(task: int, table: Table, out: Out, first: int, edges: Edges, asked: Asked, kept: Candidates, k: int) -> None:
    """Collect the candidates of row part `task % P` for query part `task // P`."""
    parts = edges.groups.size - 1
    part, queries = task % parts, task // parts
    span = Span(edges.queries[queries], edges.queries[queries + 1], edges.groups[part], edges.groups[part + 1])
    nothing = np.empty((parts, 0, 0), np.int64)
    no_heaps = Heaps(nothing, nothing[0], nothing[0])
    # A sample tells where the threshold will come to lie: with 4 standard deviations to spare, somewhat below. Without
    # it a query has some ten times k candidates before its threshold has risen (N = 1M, k = 100).
    expected = k / parts / _SAMPLE_STRIDE
    rank = int(np.ceil(expected + 4 * np.sqrt(expected) + 4))
    if (span.end_group - span.first_group) * GROUP > 4 * rank * _SAMPLE_STRIDE:
        for q in range(span.first_query, span.end_query):
            kept.limits[part, q] = min(2 * rank + 64, kept.low.shape[2])
        scan(table, asked, out, first, span, part, rank, kept, no_heaps, False, _SAMPLE_STRIDE)
        for q in range(span.first_query, span.end_query):
            start_at_estimate(kept, part, q, rank if asked.units[q] > 0 else kept.low.shape[2], k)
    scan(table, asked, out, first, span, part, k, kept, no_heaps, False, 1)


@jit()
def rescore_part(task: int, tasks: int, table: Table, asked: Asked, kept: Candidates, found: Sifted) -> None:
    """Turn the candidates of every `tasks`-th query into its answer."""
    for q in range(task, len(asked.queries), tasks):
        rescore(table.items, asked, kept, q, found.best[q], found.certified, found.rescored)


@jit()
def refine(part: int, table: Table, out: Out, first: int, edges: IntArray, asked: Asked, heaps: Heaps) -> None:
    """Search a part of the rows for one query, `first` of the batch, scoring each row that the codes let through."""
    nothing, no_rows = np.empty((edges.size, 1, 0), np.float32), np.empty((edges.size, 1, 0), np.uint32)
    no_count, floors = np.zeros((edges.size, 1), np.int64), np.full((edges.size, 1), -np.inf, np.float32)
    kept = Candidates(no_rows, nothing, nothing, no_count, no_count, floors)
    scan(table, asked, out, first, Span(0, 1, edges[part], edges[part + 1]), part, 0, kept, heaps, True, 1)
