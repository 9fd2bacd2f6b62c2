"""What rules make of the best items: boosts, caps and diversity, as if every item of the catalogue had been looked at.

A pool of the best items is fetched, never the catalogue. An item outside of it scores no more than its last one, and
gains no more than the largest boost that any item gets; so what stands above the sum of the two in the pool, stands
there in the whole catalogue too. Where that is too little to fill the list, the pool grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.kernels import ItemIndex
from fuserec.rules import ANY, Rules
from fuserec.serve.stores import Categories
from fuserec.serve.users import Ids

Floats = NDArray[np.float32]
Listed = tuple[Ids, Floats]
"""Ids and scores, best first; the tail is `NO_ID` and -inf."""
Fetch = Callable[[int], Listed]

# Diversity picks from so many of the best items.
_DIVERSE_PER_PICK: Final = 10
_DIVERSE_MIN, _DIVERSE_MAX = 200, 2_000
_GROWTH: Final = 4


class RuleStage:
    """Rules over one catalogue.

    Args:
        categories: Those of the items.
        index: The item vectors.
    """

    def __init__(self, categories: Categories, index: ItemIndex) -> None:
        self._categories = categories
        self._index = index

    def unknown(self, rules: Rules) -> int:
        """Return how many of the categories that rules name no item has."""
        named = set(rules.boosts) | (set(rules.caps) - {ANY})
        return len(named - self._categories.numbers.keys())

    def pool(self, rules: Rules, k: int) -> int:
        """Return how many of the best items to fetch at first for a list of k."""
        return min(_GROWTH * _reach(rules, k), self._index.rows)

    def choose(self, rules: Rules, k: int, first: Listed, fetch: Fetch) -> Listed:
        """Return the k items that rules make of all.

        Boosts come first; ties between boosted scores keep the order that the items had. From there the list is filled
        from the top, past items for which no cap leaves room. With diversity the next item is instead, among the
        best max(10 k, 200) that the caps do not rule out from the start, but at most 2,000, the one with the largest

            (1 - diversity) * relevance - diversity * (largest cosine between it and the items in the list)

        where relevance is the boosted score, scaled to run from 0 to 1 over those items. If the caps leave room for
        fewer than k of them, the list is filled from what comes after.

        Args:
            rules: Some rules.
            k: How many to return.
            first: The best `pool(rules, k)` items or more.
            fetch: Returns the best `size` items, as often as it takes.

        Returns:
            (k,) ids in the order in which they were picked, and their boosted scores.
        """
        weights = np.zeros(len(self._categories))
        for name, boost in rules.boosts.items():
            if name in self._categories.numbers:
                weights[self._categories.numbers[name]] = boost
        gains = self._categories.sums(weights)
        ids, scores = first
        while True:
            whole = len(ids) >= self._index.rows or NO_ID in ids
            room = _Room(self._categories, rules)
            here = ids != NO_ID
            groups = self._categories.groups_of(ids[here])
            boosted = scores[here] + gains[groups]
            sure = room.open[groups] if whole else room.open[groups] & (boosted >= scores[-1] + gains.max())
            places = np.flatnonzero(sure)
            places = places[np.argsort(-boosted[places], kind="stable")]
            if whole or len(places) >= _reach(rules, k):
                picked = self._pick(rules, k, ids[here][places], boosted[places], groups[places], room)
                if whole or len(picked) == k:
                    return _filled_up(ids[here][places[picked]], boosted[places[picked]], k)
            ids, scores = fetch(min(_GROWTH * len(ids), self._index.rows))

    def _pick(
        self, rules: Rules, k: int, ids: Ids, boosted: NDArray[np.float64], groups: Ids, room: _Room
    ) -> list[int]:
        """Return the places of at most k of n items, which come in boosted order."""
        if not rules.diversity:
            return room.fill(groups, [], k)
        pool = slice(0, _reach(rules, k))
        picked = _diverse(boosted[pool], self._index.vectors(ids[pool]), groups[pool], room, k, rules.diversity)
        return room.fill(groups, picked, k)


class _Room:
    """What the caps leave while a list is filled.

    Attributes:
        open: (G,) bool: an item of the group still has a place.
    """

    def __init__(self, categories: Categories, rules: Rules) -> None:
        self._categories = categories
        self.open = np.ones(categories.n_groups, dtype=np.bool_)
        self._left: dict[int, int] = {}
        self._any = ANY in rules.caps
        if not rules.caps:
            return
        if self._any:
            self._left = dict.fromkeys(range(len(categories)), rules.caps[ANY])
        numbers = categories.numbers
        self._left |= {numbers[name]: cap for name, cap in rules.caps.items() if name in numbers}
        for category, left in self._left.items():
            if left == 0:
                self.open[categories.groups_with(category)] = False

    def take(self, group: int) -> None:
        """Count an item of a group in each of its categories."""
        if not self._left:
            return
        for category in self._categories.of_group(group).tolist():
            if category in self._left:
                self._left[category] -= 1
                if self._left[category] == 0:
                    self.open[self._categories.groups_with(category)] = False

    def fill(self, groups: Ids, picked: list[int], k: int) -> list[int]:
        """Return `picked`, then the first other places for whose groups there is room, k in all at most."""
        taken = set(picked)
        for place, group in enumerate(groups.tolist()):
            if len(picked) >= k:
                break
            if place not in taken and self.open[group]:
                picked.append(place)
                self.take(group)
        return picked


def _diverse(
    boosted: NDArray[np.float64], vectors: Floats, groups: Ids, room: _Room, k: int, diversity: float
) -> list[int]:
    """Return the places of at most k of n items by maximal marginal relevance (Carbonell and Goldstein, 1998).

    Args:
        boosted: (n,) descending.
        vectors: (n, D).
        groups: (n,)
        room: Changed by what is picked.
        k: How many.
        diversity: 1 - lambda.
    """
    picked: list[int] = []
    if not len(boosted):
        return picked
    spread = boosted[0] - boosted[-1]
    relevance = (boosted - boosted[-1]) / spread if spread > 0 else np.zeros(len(boosted))
    # In float64, so that no order of sums decides between two items.
    directions = vectors.astype(np.float64)
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    left = np.ones(len(boosted), dtype=np.bool_)
    similarity = np.zeros(len(boosted))
    while len(picked) < k:
        left &= room.open[groups]
        if not left.any():
            break
        marginal = (1.0 - diversity) * relevance - diversity * similarity
        best = int(np.argmax(np.where(left, marginal, -np.inf)))
        cosine = directions @ directions[best]
        similarity = cosine if not picked else np.maximum(similarity, cosine)
        picked.append(best)
        left[best] = False
        room.take(int(groups[best]))
    return picked


def _reach(rules: Rules, k: int) -> int:
    """Return of how many items the boosted order must be known."""
    return min(max(_DIVERSE_PER_PICK * k, _DIVERSE_MIN), _DIVERSE_MAX) if rules.diversity else k


def _filled_up(ids: Ids, scores: NDArray[np.float64], k: int) -> Listed:
    answer = np.full(k, NO_ID, dtype=np.int64), np.full(k, -np.inf, dtype=np.float32)
    answer[0][: len(ids)], answer[1][: len(ids)] = ids, scores
    return answer
