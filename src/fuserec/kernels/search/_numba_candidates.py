"""The rows that one query has not ruled out yet, with lower and upper bounds on their scores.

The threshold is the k-th largest lower bound seen: k rows score at least that, so a later row that cannot score more is
out for good (later rows have larger ids, so a tie is lost too).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fuserec.kernels._arrays import FloatArray, IntArray
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_select import kth_largest

OVERFLOW: Final = -1
_ROOM: Final = 256  # candidates beyond k before the first prune, and between prunes at least


class Candidates(NamedTuple):
    """Candidates of every row part and query, in ascending rows; in units of the query's scale.

    Attributes:
        rows: (P, B, C) uint32.
        low: (P, B, C) float32 lower bounds.
        high: (P, B, C) float32 upper bounds.
        counts: (P, B) int64; `OVERFLOW` where C was not enough.
        limits: (P, B) int64: the count at which to prune.
        floors: (P, B) float32: the threshold that the scan began with, an estimate; -inf if there was none. The k-th
            best score must turn out to be no less, or too much was dropped.
    """

    rows: npt.NDArray[np.uint32]
    low: FloatArray
    high: FloatArray
    counts: IntArray
    limits: IntArray
    floors: FloatArray


@jit()
def allocate_candidates(parts: int, batch: int, k: int, capacity: int) -> Candidates:
    """Return room for `capacity` candidates each; memory is touched only as far as it is used."""
    shape = (parts, batch, capacity)
    counts, limits = np.zeros((parts, batch), np.int64), np.empty((parts, batch), np.int64)
    floors = np.empty((parts, batch), np.float32)
    limits[:], floors[:] = min(2 * k + _ROOM, capacity), -np.inf
    return Candidates(
        np.empty(shape, np.uint32), np.empty(shape, np.float32), np.empty(shape, np.float32), counts, limits, floors
    )


@jit()
def lowered(threshold: float, margin: float) -> np.float32:
    """Return threshold - margin, rounded down; exactly the threshold for a query of zeros, whose margin is 0."""
    if margin == 0:
        return np.float32(threshold)
    return np.float32(np.nextafter(np.float32(threshold - margin), np.float32(-np.inf)))


@jit()
def prune(kept: Candidates, part: int, q: int, k: int, scratch: FloatArray) -> np.float32:
    """Drop the candidates below the threshold and return it; mark an overflow if too many are left."""
    rows, low, high = kept.rows[part, q], kept.low[part, q], kept.high[part, q]
    count = kept.counts[part, q]
    if count < k:
        kept.counts[part, q] = OVERFLOW
        return np.float32(np.inf)
    for i in range(count):
        scratch[i] = low[i]
    threshold = kth_largest(scratch, count, k)
    left = 0
    for i in range(count):
        if high[i] >= threshold:
            rows[left], low[left], high[left] = rows[i], low[i], high[i]
            left += 1
    kept.counts[part, q] = left
    kept.limits[part, q] = min(max(2 * left, left + _ROOM), rows.size)
    if rows.size - left < rows.size // 8:
        kept.counts[part, q] = OVERFLOW
        return np.float32(np.inf)
    return threshold
