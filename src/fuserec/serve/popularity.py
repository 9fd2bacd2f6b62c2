"""What is recommended to somebody of whom nothing is known: the most popular items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.serve.stores import IdMap


class Popularity:
    """Items by number of interactions, most first, ties by ascending id.

    Args:
        item_ids: (n,) int64.
        counts: (n,) interactions of each item.
    """

    def __init__(self, item_ids: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        order = np.lexsort((item_ids, -counts))
        self._ids = item_ids[order]
        self._places = IdMap(self._ids)
        self._shares = (counts[order] / max(1, counts.sum())).astype(np.float32)

    def top(
        self, k: int, excluded: NDArray[np.int64], allow: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return (k,) ids and (k,) scores, an item's share of all interactions; the tail is `NO_ID` and -inf.

        Args:
            k: How many.
            excluded: Item ids that must not come back; unknown ones are fine.
            allow: The only item ids that may; None allows all.
        """
        ids = np.full(k, NO_ID, dtype=np.int64)
        scores = np.full(k, -np.inf, dtype=np.float32)
        if allow is None:
            # k + |excluded| of an ordered list always hold the best k that are left.
            head = np.arange(min(k + len(excluded), len(self._ids)))
        else:
            head = np.unique(self._places.rows(allow))
            head = head[head >= 0]
        kept = ~np.isin(self._ids[head], excluded)
        best = self._ids[head][kept][:k]
        ids[: len(best)] = best
        scores[: len(best)] = self._shares[head][kept][: len(best)]
        return ids, scores
