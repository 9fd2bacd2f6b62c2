"""The final order of candidates: the retriever's score and the ranker's, on one scale, weighted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def blend(retrieval: FloatArray, rank: FloatArray, weight: float) -> FloatArray:
    """Join two scores of each user's candidates: (1 - weight) * z(retrieval) + weight * z(rank).

    z takes away the mean of a user's candidates and divides by their standard deviation, as the two scores have
    neither origin nor unit in common; scores that are all alike become 0.

    Args:
        retrieval: (U, C) float32; -inf or NaN where there is no candidate.
        rank: (U, C) float32, of the same candidates; what stands where there is none makes no difference.
        weight: from 0, the retriever alone, to 1, the ranker alone.

    Returns:
        (U, C) float32, -inf where there is no candidate.

    Raises:
        ValueError: if the shapes differ, the weight is not from 0 to 1, or the rank score of a candidate is not finite.
    """
    if retrieval.ndim != 2 or retrieval.shape != rank.shape:
        raise ValueError(f"retrieval and rank have shapes {retrieval.shape} and {rank.shape}; expected (U, C) twice")
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight is {weight}; expected 0 <= weight <= 1")
    present = np.isfinite(retrieval)
    if not np.isfinite(rank[present]).all():
        raise ValueError("rank holds NaN or infinity for a candidate; expected finite scores")
    joined = (1.0 - weight) * _standardized(retrieval, present) + weight * _standardized(rank, present)
    return np.where(present, joined, -np.inf).astype(np.float32)


def _standardized(scores: FloatArray, present: NDArray[np.bool_]) -> NDArray[np.float64]:
    count = np.maximum(present.sum(axis=1, keepdims=True), 1)
    kept = np.where(present, scores, 0.0).astype(np.float64)
    centred = np.where(present, kept - kept.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    # Rounding leaves scores that are all alike a deviation just above 0.
    alike = deviation <= 1e-6 * np.abs(kept).max(axis=1, keepdims=True, initial=0.0)
    standardized: NDArray[np.float64] = np.where(alike, 0.0, centred / np.where(alike, 1.0, deviation))
    return standardized
