"""One order out of two opinions on the same candidates: the retriever's and the ranker's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def blend(retrieval: Floats, rank: Floats, weight: float) -> Floats:
    """Return `(1 - weight) * z(retrieval) + weight * z(rank)`.

    z standardizes the scores of a user: less their mean, over their standard deviation.

    Args:
        retrieval: (U, C) float32; -inf where there is no candidate.
        rank: (U, C) float32, likewise.
        weight: 0 gives the order of the retriever, 1 that of the ranker.

    Returns:
        (U, C) float32; -inf where there is no candidate.
    """
    present = np.isfinite(retrieval) & np.isfinite(rank)
    mixed = (1.0 - weight) * _standardized(retrieval, present) + weight * _standardized(rank, present)
    return np.where(present, mixed, -np.inf).astype(np.float32)


def _standardized(scores: Floats, present: NDArray[np.bool_]) -> NDArray[np.float64]:
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    kept = np.where(present, scores, 0.0).astype(np.float64)
    centred = np.where(present, kept - kept.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    standardized: NDArray[np.float64] = centred / np.where(deviation > 0, deviation, 1.0)
    return standardized
