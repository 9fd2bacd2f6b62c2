"""CPU twin of the search: pool, score, filter and select in one pass, in parallel over parts of queries or rows.

Only compiled functions and the call that launches them. All of them live in this file because numba's on-disk cache
watches one file a function.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import numba
import numpy as np

from fuserec.kernels._arrays import BoolArray, DoubleArray, FloatArray, IntArray, read_only
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.query import Pool
from fuserec.kernels.search import keys as packed
from fuserec.kernels.search.config import choose_cpu_config
from fuserec.kernels.search.found import Found

_LOW_32 = packed.MAX_ROWS - 1
_ROW_BLOCK = 256  # rows scored for one query after another while they are in cache

# numba's "workqueue" threads abort the process when two Python threads launch at once, and with any threading layer
# two launches only fight for the same cores: one parallel search at a time.
_launch = threading.Lock()

_F = TypeVar("_F", bound=Callable[..., object])


class _Bags(NamedTuple):
    """`Pool` without what only the host reads."""

    table: FloatArray
    ids: IntArray
    offsets: IntArray
    weights: FloatArray


class _Out(NamedTuple):
    """`RowFilter` as numba takes it."""

    offsets: IntArray
    rows: IntArray
    allow: BoolArray


class _Parts(NamedTuple):
    """Edges of the parts of the batch and of the table; task `t` is query part `t // P`, row part `t % P`."""

    query_edges: IntArray
    row_edges: IntArray


class _Heaps(NamedTuple):
    """What the tasks write: keys (P, B, k) of the best rows of each row part, and magnitudes (P, B)."""

    keys: IntArray
    magnitudes: DoubleArray


def _jit(*, parallel: bool = False, fastmath: frozenset[str] = frozenset()) -> Callable[[_F], _F]:
    options = numba.njit(cache=True, nogil=True, parallel=parallel, fastmath=set(fastmath))
    return cast("Callable[[_F], _F]", options)


# Sums may be reordered, which is what lets them use vector registers; NaN and infinity keep their meaning. The order
# depends on the width of the row only, so equal rows score equal wherever they lie.
@_jit(fastmath=frozenset({"reassoc", "contract", "nsz"}))
def _dot(items: FloatArray, row: int, queries: FloatArray, query: int) -> np.float32:
    total = np.float32(0)
    for d in range(items.shape[1]):
        total += items[row, d] * queries[query, d]
    return total


@_jit()
def _pool(bags: _Bags, b: int, normalize: bool, query: FloatArray) -> float:
    """Pool query `b` in float64, write it to `query` (D,), and return the sum of its absolute values."""
    start, stop = bags.offsets[b], bags.offsets[b + 1]
    dim = query.size
    total = np.zeros(dim, np.float64)
    for t in range(start, stop):
        weight = np.float64(bags.weights[t]) if bags.weights.size > 0 else 1.0
        for d in range(dim):
            total[d] += weight * bags.table[bags.ids[t], d]
    if bags.weights.size == 0 and stop > start:
        for d in range(dim):
            total[d] /= stop - start
    magnitude = 0.0
    squares = 0.0
    for d in range(dim):
        magnitude += abs(total[d])
        squares += total[d] * total[d]
    scale = 1.0 / np.sqrt(squares) if normalize and squares > 0 else 1.0
    for d in range(dim):
        query[d] = total[d] * scale
    return magnitude


@_jit()
def _pack(bits: int, row: int) -> int:
    """Return the packed key of a float32 given by its bits."""
    if bits == -(2**31):  # -0.0 equals 0.0, so they must not differ as keys
        bits = 0
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return int((np.int64(bits) << 32) | (_LOW_32 - row))


@_jit()
def _push(heap: IntArray, size: int, key: int) -> int:
    """Put `key` into the min-heap of the best keys, in place of the worst when it is full; return the new size."""
    at = size
    if size < heap.size:
        while at > 0 and heap[(at - 1) // 2] > key:
            heap[at] = heap[(at - 1) // 2]
            at = (at - 1) // 2
        heap[at] = key
        return size + 1
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key
    return size


@_jit()
def _is_listed(rows: IntArray, start: int, stop: int, row: int) -> bool:
    """Return whether `row` is among the ascending `rows[start:stop]`."""
    end = stop
    while start < stop:
        middle = (start + stop) // 2
        if rows[middle] < row:
            start = middle + 1
        else:
            stop = middle
    return start < end and rows[start] == row


@_jit()
def _scan(
    items: FloatArray, queries: FloatArray, first_query: int, first_row: int, end_row: int, out: _Out, heaps: IntArray
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
                scores[row - start] = _dot(items, row, queries, q)
            b = first_query + q
            mask = b if out.allow.shape[0] > 1 else 0
            heap = heaps[q]
            for row in range(start, stop):
                key = _pack(bits[row - start], row)
                # Few rows get past the worst key held, so the filters are looked up for those only.
                if sizes[q] == k and key < heap[0]:
                    continue
                if out.allow.shape[0] > 0 and not out.allow[mask, row]:
                    continue
                if _is_listed(out.rows, out.offsets[b], out.offsets[b + 1], row):
                    continue
                sizes[q] = _push(heap, sizes[q], key)


@_jit()
def _run_task(
    task: int, items: FloatArray, bags: _Bags, normalize: bool, out: _Out, parts: _Parts, found: _Heaps
) -> None:
    """Pool the queries of one part and scan the rows of one part."""
    row_parts = parts.row_edges.size - 1
    part = task % row_parts
    first, end = parts.query_edges[task // row_parts], parts.query_edges[task // row_parts + 1]
    queries = np.empty((end - first, items.shape[1]), np.float32)
    for b in range(first, end):
        found.magnitudes[part, b] = _pool(bags, b, normalize, queries[b - first])
    heaps = found.keys[part, first:end]
    _scan(items, queries, first, parts.row_edges[part], parts.row_edges[part + 1], out, heaps)


@_jit()
def _run_serial(
    tasks: int, items: FloatArray, bags: _Bags, normalize: bool, out: _Out, parts: _Parts, found: _Heaps
) -> None:
    for task in range(tasks):
        _run_task(task, items, bags, normalize, out, parts, found)


@_jit(parallel=True)
def _run_parallel(
    tasks: int, items: FloatArray, bags: _Bags, normalize: bool, out: _Out, parts: _Parts, found: _Heaps
) -> None:
    for task in numba.prange(tasks):
        _run_task(task, items, bags, normalize, out, parts, found)


def search(items: FloatArray, pool: Pool, out: RowFilter, k: int, *, normalize: bool) -> Found:
    """Search on the CPU with as many threads as `numba.get_num_threads()`; arguments as in `reference.search`."""
    config = choose_cpu_config(pool.batch, len(items), items.shape[1], numba.get_num_threads())
    parts = _Parts(
        query_edges=np.arange(config.query_parts + 1) * pool.batch // config.query_parts,
        row_edges=np.arange(config.row_parts + 1) * len(items) // config.row_parts,
    )
    found = _Heaps(
        keys=np.full((config.row_parts, pool.batch, k), packed.EMPTY, np.int64),
        magnitudes=np.empty((config.row_parts, pool.batch), np.float64),
    )
    arguments = (
        read_only(items),
        _Bags(read_only(pool.table), read_only(pool.ids), read_only(pool.offsets), read_only(pool.weights)),
        normalize,
        _Out(read_only(out.offsets), read_only(out.rows), read_only(out.allow)),
        parts,
        found,
    )
    tasks = config.query_parts * config.row_parts
    if tasks == 1:
        _run_serial(tasks, *arguments)
    else:
        with _launch:
            _run_parallel(tasks, *arguments)
    best = np.sort(np.concatenate(found.keys, axis=1), axis=1)[:, : -k - 1 : -1]
    return Found(*packed.unpack(best), found.magnitudes[0])
