"""From candidates to the answer: score from the rows those that can still be among the k best, and sort."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.kernels._arrays import BoolArray, DoubleArray, FloatArray, IntArray
from fuserec.kernels.search._numba_candidates import OVERFLOW, Candidates
from fuserec.kernels.search._numba_emit import LINE_BYTES, address_of, prefetch
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked
from fuserec.kernels.search._numba_score import dot, pack_key, row_of, score_of
from fuserec.kernels.search._numba_select import kth_largest, sort_by_score
from fuserec.kernels.search.keys import EMPTY

_AHEAD: Final = 8  # rows asked for before they are read: from memory a row takes longer to come than to score


class Answers(NamedTuple):
    """What a search of the whole batch yields.

    Attributes:
        rows: (B, k) int64; this and what follows as in `Found`.
        scores: (B, k) float32.
        magnitudes: (B,) float64.
        certified: (B,) bool.
        rescored: (B,) int64.
    """

    rows: IntArray
    scores: FloatArray
    magnitudes: DoubleArray
    certified: BoolArray
    rescored: IntArray


@jit()
def _score(items: FloatArray, asked: Asked, q: int, rows: IntArray, places: IntArray, keys: IntArray) -> None:
    """Write the packed keys of `rows[places]` to `keys[places]`."""
    queries, row_bytes = asked.queries, 4 * items.shape[1]
    address = address_of(items)
    for i in range(-_AHEAD, places.size):
        if i + _AHEAD < places.size:
            for offset in range(0, row_bytes, LINE_BYTES):
                prefetch(address + rows[places[i + _AHEAD]] * row_bytes + offset)
        if i >= 0:
            row = rows[places[i]]
            keys[places[i]] = pack_key(dot(items, row, queries, q), row)


@jit()
def _kth_score(keys: IntArray, found: int, k: int) -> float:
    """Return the k-th best score of those `keys` that are not `EMPTY`, of which there are `found`; -inf if too few."""
    if found < k:
        return -np.inf
    scores = np.empty(found, np.float32)
    at = 0
    for key in keys:
        if key != EMPTY:
            scores[at] = score_of(key)
            at += 1
    return np.float64(kth_largest(scores, found, k))


@jit()
def _upper(bound: np.float32, unit: float) -> float:
    """Return a bound in units of the query's scale as a score, rounded up."""
    upper = bound * unit
    return upper + abs(upper) * 2.0**-50


@jit()
def rescore(items: FloatArray, asked: Asked, kept: Candidates, q: int, b: int, answers: Answers) -> None:
    """Turn the candidates of query `q` into the answer of query `b` of the batch.

    The candidates with the best lower bounds are scored first. The k-th best of their scores is above the threshold
    that bounds gave, and spares most of the others.
    """
    parts, k, unit = kept.counts.shape[0], answers.rows.shape[1], asked.units[q]
    answers.certified[b], answers.rescored[b] = False, 0
    answers.rows[b], answers.scores[b] = -1, -np.inf
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
    keys, todo = np.full(size, EMPTY), np.empty(size, np.int64)
    promising = kth_largest(low.copy(), size, k) if size > k else np.float32(-np.inf)
    found = 0
    for i in range(size):
        todo[found] = i
        found += low[i] >= promising
    _score(items, asked, q, rows, todo[:found], keys)
    worst = _kth_score(keys, found, k)
    more = 0
    for i in range(size):
        todo[more] = i
        more += low[i] < promising and _upper(high[i], unit) >= worst
    _score(items, asked, q, rows, todo[:more], keys)
    answers.rescored[b] = found + more
    left = 0
    for key in keys:
        keys[left] = key
        left += key != EMPTY
    best = sort_by_score(keys, left)  # of equal scores the rows ascend already
    # What the floor dropped scores less than the floor: no proof unless the k-th best reaches it.
    floor = kept.floors[:, q].max()
    if floor > -np.inf and (left < k or score_of(best[k - 1]) < _upper(floor, unit)):
        return
    answers.certified[b] = True
    for i in range(min(k, left)):
        answers.rows[b, i], answers.scores[b, i] = row_of(best[i]), score_of(best[i])
