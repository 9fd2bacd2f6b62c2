"""The scan that reads every row itself: for indexes without codes, and for a k that codes could not narrow down."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.kernels._arrays import DoubleArray, FloatArray, IntArray
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_score import Bags, Out, dot, is_out, pack_bits, pool_query, push

_ROW_BLOCK: Final = 256  # rows scored for one query after another while they are in cache


class Parts(NamedTuple):
    """Edges of the parts of the batch and of the table; task `t` is query part `t // P`, row part `t % P`."""

    query_edges: IntArray
    row_edges: IntArray


class Heaps(NamedTuple):
    """What the tasks write: keys (P, B, k) of the best rows of each row part, and magnitudes (P, B)."""

    keys: IntArray
    magnitudes: DoubleArray


@jit()
def _scan(
    items: FloatArray, queries: FloatArray, first_query: int, first_row: int, end_row: int, out: Out, heaps: IntArray
) -> None:
    """Fill `heaps` (Q, k) with the best keys of rows `first_row:end_row` for each of `queries` (Q, D)."""
    n_queries, k = heaps.shape
    sizes = np.zeros(n_queries, np.int64)
    scores = np.empty(_ROW_BLOCK, np.float32)
    bits = scores.view(np.int32)
    for start in range(first_row, end_row, _ROW_BLOCK):
        stop = min(start + _ROW_BLOCK, end_row)
        for q in range(n_queries):
            for row in range(start, stop):
                scores[row - start] = dot(items, row, queries, q)
            b = first_query + q
            heap = heaps[q]
            for row in range(start, stop):
                key = pack_bits(bits[row - start], row)
                # Few rows get past the worst key held, so the filters are looked up for those only.
                if sizes[q] == k and key < heap[0]:
                    continue
                if is_out(out, b, row):
                    continue
                sizes[q] = push(heap, sizes[q], key)


@jit()
def scan_part(task: int, items: FloatArray, bags: Bags, normalize: bool, out: Out, parts: Parts, found: Heaps) -> None:
    """Pool the queries of one part and scan the rows of one part."""
    row_parts = parts.row_edges.size - 1
    part = task % row_parts
    first, end = parts.query_edges[task // row_parts], parts.query_edges[task // row_parts + 1]
    queries = np.empty((end - first, items.shape[1]), np.float32)
    for b in range(first, end):
        found.magnitudes[part, b] = pool_query(bags, b, normalize, queries[b - first])
    heaps = found.keys[part, first:end]
    _scan(items, queries, first, parts.row_edges[part], parts.row_edges[part + 1], out, heaps)
