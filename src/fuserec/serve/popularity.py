"""What is recommended to somebody of whom nothing is known: the most popular items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID


class Popularity:
    """Items by number of interactions, most first, ties by ascending id.

    Args:
        item_ids: (n,) int64.
        counts: (n,) interactions of each item.
    """

    def __init__(self, item_ids: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        order = np.lexsort((item_ids, -counts))
        self._ids = item_ids[order]
        self._shares = (counts[order] / max(1, counts.sum())).astype(np.float32)

    def top(self, k: int, excluded: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return (k,) ids and (k,) scores, an item's share of all interactions; the tail is `NO_ID` and -inf."""
        ids = np.full(k, NO_ID, dtype=np.int64)
        scores = np.full(k, -np.inf, dtype=np.float32)
        # k + |excluded| of an ordered list always hold the best k that are left.
        head = slice(0, k + len(excluded))
        kept = ~np.isin(self._ids[head], excluded)
        best = self._ids[head][kept][:k]
        ids[: len(best)] = best
        scores[: len(best)] = self._shares[head][kept][: len(best)]
        return ids, scores
