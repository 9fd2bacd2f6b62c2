# mypy: ignore-errors
# Numba types what is compiled here, and sees integers of 64 bits and raw addresses where mypy sees int.
"""From candidates to the answer: score from the rows those that can still be among the k best, and sort."""

from __future__ import annotations

from typing import Final

import numpy as np

from fuserec.kernels._arrays import BoolArray, FloatArray, IntArray
from fuserec.kernels.search._numba_candidates import OVERFLOW, Candidates, kth_largest
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked
from fuserec.kernels.search._numba_score import dot, pack_key, score_of
from fuserec.kernels.search._numba_tile import prefetch

_AHEAD: Final = 8  # rows asked for before they are read: from memory a row takes longer to come than to score
_LINE_BYTES: Final = 64


@jit()
def _score(items: FloatArray, asked: Asked, q: int, rows: IntArray, size: int, keys: IntArray) -> None:
    """Write the packed keys of `rows[:size]` to `keys`."""
    queries, row_bytes = asked.queries, 4 * items.shape[1]
    address = np.int64(items.ctypes.data)
    for i in range(-_AHEAD, size):
        if i + _AHEAD < size:
            for offset in range(0, row_bytes, _LINE_BYTES):
                prefetch(address + rows[i + _AHEAD] * row_bytes + offset)
        if i >= 0:
            keys[i] = pack_key(dot(items, rows[i], queries, q), rows[i])


@jit()
def _is_proven(kept: Candidates, q: int, low: FloatArray, k: int) -> bool:
    """Return whether what the estimates dropped is below the k-th best of all that is left, with bounds `low`."""
    floor = kept.floors[:, q].max()
    if floor == -np.inf:
        return True
    return low.size >= k and kth_largest(low.copy(), low.size, k) >= floor


@jit()
def rescore(
    items: FloatArray, asked: Asked, kept: Candidates, q: int, best: IntArray, certified: BoolArray, rescored: IntArray
) -> None:
    """Write the best keys of query `q` to `best` (k,), descending; `EMPTY` is left where there are none.

    The candidates with the best lower bounds are scored first. The k-th best of their scores is above the threshold
    that bounds gave, and spares most of the others.
    """
    parts, k = kept.counts.shape[0], best.size
    certified[q] = False
    size = 0
    for part in range(parts):
        if kept.counts[part, q] == OVERFLOW:
            return
        size += kept.counts[part, q]
    rows, high, low = np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.float32)
    at = 0
    for part in range(parts):
        for i in range(kept.counts[part, q]):
            rows[at], high[at], low[at] = kept.rows[part, q, i], kept.high[part, q, i], kept.low[part, q, i]
            at += 1
    if not _is_proven(kept, q, low, k):
        return
    certified[q] = True
    keys, todo = np.empty(size, np.int64), np.empty(size, np.int64)
    promising = kth_largest(low.copy(), size, k) if size > k else np.float32(-np.inf)
    found = 0
    for i in range(size):
        if low[i] >= promising:
            todo[found] = rows[i]
            found += 1
    _score(items, asked, q, todo, found, keys)
    if found >= k:
        worst = np.float64(score_of(np.sort(keys[:found])[found - k]))
        more = 0
        for i in range(size):
            upper = high[i] * asked.units[q]
            if low[i] < promising and upper + abs(upper) * 2.0**-50 >= worst:
                todo[more] = rows[i]
                more += 1
        _score(items, asked, q, todo, more, keys[found:])
        found += more
    rescored[q] = found
    ordered = np.sort(keys[:found])
    for i in range(min(k, found)):
        best[i] = ordered[found - 1 - i]
