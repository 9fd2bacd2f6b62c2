"""From candidates to the answer: score from the rows those that can still be among the k best, and sort."""

from __future__ import annotations

import numpy as np

from fuserec.kernels._arrays import BoolArray, FloatArray, IntArray
from fuserec.kernels.search._numba_candidates import OVERFLOW, Candidates, kth_largest
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked
from fuserec.kernels.search._numba_score import dot, pack_key, score_of


@jit()
def rescore(
    items: FloatArray, asked: Asked, kept: Candidates, q: int, best: IntArray, certified: BoolArray, rescored: IntArray
) -> None:
    """Write the best keys of query `q` to `best` (k,), descending, and `EMPTY` is left where there are none.

    The candidates whose bounds promise most are scored first. The k-th best of them is a true score, higher than the
    threshold that lower bounds gave, and spares most of the others.
    """
    parts, k = kept.counts.shape[0], best.size
    size = 0
    for part in range(parts):
        if kept.counts[part, q] == OVERFLOW:
            certified[q] = False
            return
        size += kept.counts[part, q]
    certified[q] = True
    rows, high, low = np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.float32)
    at = 0
    for part in range(parts):
        for i in range(kept.counts[part, q]):
            rows[at], high[at], low[at] = kept.rows[part, q, i], kept.high[part, q, i], kept.low[part, q, i]
            at += 1
    keys = np.empty(size, np.int64)
    promising = kth_largest(low.copy(), size, k) if size > k else np.float32(-np.inf)
    found = 0
    for i in range(size):
        if low[i] >= promising:
            keys[found] = pack_key(dot(items, rows[i], asked.queries, q), rows[i])
            found += 1
    if found >= k:
        worst = np.float64(score_of(np.sort(keys[:found])[found - k]))
        unit = asked.units[q]
        for i in range(size):
            upper = high[i] * unit
            if low[i] < promising and upper + abs(upper) * 2.0**-50 >= worst:
                keys[found] = pack_key(dot(items, rows[i], asked.queries, q), rows[i])
                found += 1
    rescored[q] = found
    ordered = np.sort(keys[:found])
    for i in range(min(k, found)):
        best[i] = ordered[found - 1 - i]
