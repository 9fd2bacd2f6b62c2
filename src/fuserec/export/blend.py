"""Chooses how much a ranker has to say about a retriever's candidates, on users whose next item is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.serve.blending import blend

K: Final = 10
WEIGHTS: Final = tuple(step / 20 for step in range(21))

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Blend:
    """A weight, and what it was chosen by.

    Attributes:
        weight: of the rank score in `fuserec.serve.blending.blend`; 0 if the ranker does not help.
        ndcg_before: NDCG@10 of the retriever's order.
        ndcg_after: NDCG@10 with the weight; never below `ndcg_before` on the users it was chosen on.
    """

    weight: float
    ndcg_before: float
    ndcg_after: float


def choose_weight(retrieval: FloatArray, rank: FloatArray, target: IntArray) -> Blend:
    """Try the weights 0, 0.05, ..., 1 and return the one with the highest NDCG@10, the smallest of equals.

    Args:
        retrieval: (U, C) float32; -inf where there is no candidate.
        rank: (U, C) float32, of the same candidates.
        target: (U,) int64, column of the item that the user chose, -1 if it is not among the candidates.

    Raises:
        ValueError: if the shapes do not fit or there is no user.
    """
    if target.shape != retrieval.shape[:1] or not target.size:
        raise ValueError(f"target has shape {target.shape}; expected ({retrieval.shape[0]},), at least one user")
    scores = [float(ndcg(target_ranks(blend(retrieval, rank, weight), target)).mean()) for weight in WEIGHTS]
    best = int(np.argmax(scores))
    return Blend(WEIGHTS[best], scores[0], scores[best])


def target_ranks(scores: FloatArray, target: IntArray) -> IntArray:
    """Return the rank of each user's target among their candidates, 1 being best; ties count against it.

    Args:
        scores: (U, C) float32, -inf where there is no candidate.
        target: (U,) int64, a column, or -1.

    Returns:
        (U,) int64; C + 1 for a target that is no candidate.
    """
    users = np.arange(target.size)
    own = scores[users, np.maximum(target, 0)]
    ranks = (scores >= own[:, None]).sum(axis=1)
    return np.where((target >= 0) & np.isfinite(own), ranks, scores.shape[1] + 1).astype(np.int64)


def ndcg(ranks: IntArray, k: int = K) -> NDArray[np.float64]:
    """Return each user's NDCG@k with one relevant item: 1 / log2(rank + 1), 0 beyond k."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)
