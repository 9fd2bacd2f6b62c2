"""The search written plainly: float64, one query at a time, every row. What the fast twins are held to."""

from __future__ import annotations

import numpy as np

from fuserec.kernels._arrays import DoubleArray, FloatArray
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.query import Pool
from fuserec.kernels.search.found import Found


def search(items: FloatArray, pool: Pool, out: RowFilter, k: int, *, normalize: bool) -> Found:
    """Return the k best rows of each query: score descending, then row ascending.

    Scores are summed in float64 and rounded to float32 before they are compared, as what is returned is float32.

    Args:
        items: (N, D) float32.
        pool: The queries; B of them.
        out: Rows that may not be returned.
        k: At least 1, at most N.
        normalize: Divide each query by its Euclidean norm; a zero query stays zero.

    Returns:
        Rows (B, k), scores (B, k) and magnitudes (B,).
    """
    rows = np.full((pool.batch, k), -1, np.int64)
    scores = np.full((pool.batch, k), -np.inf, np.float32)
    magnitudes = np.empty(pool.batch)
    wide = items.astype(np.float64)
    for b in range(pool.batch):
        with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses such a query by its magnitude
            query = pooled(pool, b)
            magnitudes[b] = np.abs(query).sum()
            norm = np.sqrt((query**2).sum())
            if normalize and norm > 0:
                query = query / norm
            score = (wide * query).sum(axis=1).astype(np.float32)
        kept = np.flatnonzero(_kept(out, b, len(items)))
        best = kept[np.lexsort((kept, -score[kept]))][:k]
        rows[b, : len(best)] = best
        scores[b, : len(best)] = score[best] + np.float32(0)  # -0.0 becomes 0.0
    return Found(rows, scores, magnitudes)


def pooled(pool: Pool, b: int) -> DoubleArray:
    """Return query `b` in float64: a row, the mean of a bag, or its weighted sum; zero for an empty bag."""
    start, stop = int(pool.offsets[b]), int(pool.offsets[b + 1])
    bag = pool.table[pool.ids[start:stop]].astype(np.float64)
    if pool.weights.size:
        bag *= pool.weights[start:stop, None]
    total: DoubleArray = bag.sum(axis=0)
    return total if pool.weights.size or start == stop else total / (stop - start)


def _kept(out: RowFilter, b: int, rows: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    kept = np.ones(rows, np.bool_)
    if len(out.allow):
        kept &= out.allow[b if len(out.allow) > 1 else 0]
    kept[out.rows[out.offsets[b] : out.offsets[b + 1]]] = False
    return kept
