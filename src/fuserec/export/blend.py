"""How much weight a ranker gets, chosen on held-out items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.serve.blending import Floats, blend

K: Final = 10
GRID: Final = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class Blend:
    """The chosen weight, and NDCG@10 of the retriever's order and of the blended one."""

    weight: float
    ndcg_before: float
    ndcg_after: float


def choose_weight(retrieval: Floats, rank: Floats, target: NDArray[np.int64]) -> Blend:
    """Return the weight of `GRID` with the highest NDCG@10, the smallest of equals.

    Args:
        retrieval: (U, C) float32 scores of the candidates; -inf where there is none.
        rank: (U, C) float32, likewise.
        target: (U,) int64 column of the held-out item; -1 where it was not retrieved.
    """
    values = [ndcg(retrieval, rank, target, weight) for weight in GRID]
    best = int(np.argmax(values))
    return Blend(GRID[best], values[0], values[best])


def ndcg(retrieval: Floats, rank: Floats, target: NDArray[np.int64], weight: float) -> float:
    """NDCG@10 of the blended order: the mean of 1 / log2(rank + 1), 0 beyond 10; ties count against the target."""
    blended = blend(retrieval, rank, weight)
    own = np.take_along_axis(blended, np.maximum(target, 0)[:, None], axis=1)
    place = (blended >= own).sum(axis=1)
    hit = (target >= 0) & (place <= K)
    return float(np.where(hit, 1.0 / np.log2(place + 1.0), 0.0).mean())
