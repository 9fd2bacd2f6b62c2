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

    Attributes:
        ids: (n,) int64, in this order.
    """

    def __init__(self, item_ids: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        order = np.lexsort((item_ids, -counts))
        self.ids = item_ids[order]
        self._places = IdMap(self.ids)
        self._shares = (counts[order] / max(1, counts.sum())).astype(np.float32)

    def top(
        self,
        k: int,
        excluded: NDArray[np.int64],
        allow: NDArray[np.int64] | None = None,
        wanted: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float64]]:
        """Return the most popular items.

        Args:
            k: How many.
            excluded: Item ids that must not come back; unknown ones are fine.
            allow: The only item ids that may; None allows all.
            wanted: (n,) bool in the order of `ids`: the only items that may, None for all.

        Returns:
            (k,) ids, (k,) scores, an item's share of all interactions, and (k,) numbers that fall from one to the next
            where shares may be equal; the tail is `NO_ID` and -inf.
        """
        if allow is not None:
            head = np.unique(self._places.rows(allow))
            head = head[head >= 0]
            head = head if wanted is None else head[wanted[head]]
        elif wanted is not None:
            head = np.flatnonzero(wanted)
        else:
            head = np.arange(len(self.ids))
        if allow is None:
            # k + |excluded| of an ordered list always hold the best k that are left.
            head = head[: k + len(excluded)]
        best = head[~np.isin(self.ids[head], excluded)][:k]
        ids = np.full(k, NO_ID, dtype=np.int64)
        scores, orders = np.full(k, -np.inf, dtype=np.float32), np.full(k, -np.inf)
        ids[: len(best)], scores[: len(best)], orders[: len(best)] = self.ids[best], self._shares[best], -best
        return ids, scores, orders
