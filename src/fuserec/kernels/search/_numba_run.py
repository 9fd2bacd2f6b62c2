"""The compiled functions that a search launches: pool, scan and rescore, in parallel over parts of queries or rows."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from fuserec.kernels._arrays import BoolArray, IntArray
from fuserec.kernels.search._numba_candidates import Candidates
from fuserec.kernels.search._numba_codes import Heaps, Span, Table, scan
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked, ask
from fuserec.kernels.search._numba_rescore import rescore
from fuserec.kernels.search._numba_score import Bags, Out


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
def _sift_task(
    task: int, table: Table, out: Out, first: int, edges: Edges, asked: Asked, kept: Candidates, k: int
) -> None:
    """Scan row part `task % P` for query part `task // P`."""
    parts = edges.groups.size - 1
    part, queries = task % parts, task // parts
    span = Span(edges.queries[queries], edges.queries[queries + 1], edges.groups[part], edges.groups[part + 1])
    nothing = np.empty((1, 0, 0), np.int64)
    scan(table, asked, out, first, span, part, k, kept, Heaps(nothing, nothing[0], nothing[0]), False)


@jit()
def sift_serial(
    table: Table, bags: Bags, normalize: bool, out: Out, first: int, edges: Edges, asked: Asked, kept: Candidates,
    found: Sifted,
) -> None:  # fmt: skip
    """Search the queries `first` and on of the batch, on one thread."""
    for q in range(len(asked.queries)):
        ask(bags, first + q, q, normalize, asked)
    for task in range((edges.queries.size - 1) * (edges.groups.size - 1)):
        _sift_task(task, table, out, first, edges, asked, kept, found.best.shape[1])
    for q in range(len(asked.queries)):
        rescore(table.items, asked, kept, q, found.best[q], found.certified, found.rescored)


@jit(parallel=True)
def sift_parallel(
    table: Table, bags: Bags, normalize: bool, out: Out, first: int, edges: Edges, asked: Asked, kept: Candidates,
    found: Sifted,
) -> None:  # fmt: skip
    """Search as `sift_serial` does, on all threads."""
    for q in numba.prange(len(asked.queries)):
        ask(bags, first + q, q, normalize, asked)
    for task in numba.prange((edges.queries.size - 1) * (edges.groups.size - 1)):
        _sift_task(task, table, out, first, edges, asked, kept, found.best.shape[1])
    for q in numba.prange(len(asked.queries)):
        rescore(table.items, asked, kept, q, found.best[q], found.certified, found.rescored)


@jit(parallel=True)
def refine_parallel(table: Table, out: Out, first: int, edges: IntArray, asked: Asked, heaps: Heaps) -> None:
    """Search one query, `first` of the batch, scoring each row that the codes let through; parts of rows `edges`."""
    for part in numba.prange(edges.size - 1):
        none = np.empty((1, 1, 0), np.float32)
        no_count = np.zeros((1, 1), np.int64)
        kept = Candidates(np.empty((1, 1, 0), np.uint32), none, none, no_count, no_count)
        scan(table, asked, out, first, Span(0, 1, edges[part], edges[part + 1]), part, 0, kept, heaps, True)
