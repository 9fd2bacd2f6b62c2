"""What rules make of the best items: boosts, caps and diversity, as if every item of the catalogue had been looked at.

Only some of the best items are fetched. For each group of items (those of the very same categories) it is known where
in the order before boosts the ones that were not fetched begin, so that no such item scores more than a known limit.
An item that scores more than the limits of all groups for which the caps leave room stands in the list for certain. A
list that cannot be finished this way asks for more items of those groups alone that could still change it, and groups
of unlike boosts are asked for apart: no number of fetched items bridges a boost that is larger than all scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.kernels import ItemIndex
from fuserec.rules import ANY, Rules
from fuserec.serve._numba_picking import (
    Boosted,
    Groups,
    Unseen,
    count_sure,
    fill,
    keep_groups,
    open_groups,
    pick_diverse,
)
from fuserec.serve.stores import Categories
from fuserec.serve.users import Ids

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]
Listed = tuple[Ids, Floats]
"""Ids and scores, best first; the tail is `NO_ID` and -inf."""

# Diversity picks from so many of the best items.
_DIVERSE_PER_PICK: Final = 10
_DIVERSE_MIN, _DIVERSE_MAX = 200, 2_000
# A first fetch of so many items costs hardly more than one of ten, and often is the last.
_FIRST, _FIRST_SHARE = 400, 16
_GROWTH: Final = 4
_FEW_LIMITS: Final = 32
_MOST_ROUNDS: Final = 1_000
# Fetches that one list asks for at a time, at most.
_PARTS: Final = 8


@dataclass(frozen=True)
class Pool:
    """The best items of B lists before boosts, best first.

    Attributes:
        ids: (B, n) int64; the tail is `NO_ID`.
        scores: (B, n) float32, descending.
        orders: (B, n) float64: items stand in descending `orders`, then in ascending ids.
    """

    ids: Ids
    scores: Floats
    orders: Doubles


@dataclass(frozen=True)
class Wanted:
    """A request for items.

    Attributes:
        row: The list that they are for.
        size: How many of the best.
        groups: (G,) bool: the groups to look in. More may come back.
    """

    row: int
    size: int
    groups: Bools


Fetch = Callable[[Sequence[Wanted]], Pool]
"""Returns one list for each request, of the largest size among them at least."""


Check = Callable[[int], None]


def no_check(items: int) -> None:
    """Let everything pass."""


@dataclass(frozen=True)
class _Plan:
    """Rules by numbers.

    Attributes:
        gains: (G,) what the items of a group gain.
        by_gain: (G,) the groups, those that gain most first.
        left: (C,) what the caps leave of a category, -1 for no cap.
        is_open: (G,) bool: there are items in the group, and the caps leave room for one.
    """

    gains: Doubles
    by_gain: Ids
    left: Ids
    is_open: Bools


class RuleStage:
    """Rules over one catalogue.

    Args:
        categories: Those of the items.
        index: The item vectors.
    """

    def __init__(self, categories: Categories, index: ItemIndex) -> None:
        self._categories = categories
        self._index = index
        values, ends = categories.by_group
        self._groups = Groups(ends, values)

    def unknown(self, rules: Rules) -> int:
        """Return how many of the categories that rules name no item has."""
        named = set(rules.boosts) | (set(rules.caps) - {ANY})
        return len(named - self._categories.numbers.keys())

    def warm_up(self) -> None:
        """Have everything compiled."""
        ids = np.array([[self._index.ids[0], NO_ID]])
        pool = Pool(ids, np.array([[1, -np.inf]], np.float32), np.array([[1, -np.inf]]))
        self.choose([Rules(diversity=0.5)], [1], lambda _: pool)
        keep_groups(np.zeros(1, np.int32), np.ones(1, np.bool_), np.ones(1, np.bool_))

    def choose(self, rules: Sequence[Rules], ks: Sequence[int], fetch: Fetch, check: Check = no_check) -> list[Listed]:
        """Return the lists that B sets of rules make of all items.

        Boosts come first; ties between boosted scores keep the order that the items had. From there the list is filled
        from the top, past items for which no cap leaves room. With diversity the next item is instead, among the
        best max(10 k, 200) that the caps do not rule out from the start, but at most 2,000, the one with the largest

            (1 - diversity) * relevance - diversity * (largest cosine between it and the items in the list)

        where relevance is the boosted score, scaled to run from 0 to 1 over those items. If the caps leave room for
        fewer than k of them, the list is filled from what comes after.

        Args:
            rules: Some rules a list.
            ks: (B,) how many to return.
            fetch: Returns the best items of some groups for some of the lists.
            check: Called before each fetch, with how many items it is of, and after each list; raises where time is up
                or they are too many.

        Returns:
            For each, (k,) ids in the order in which they were picked, and their boosted scores.
        """
        plans: dict[int, _Plan] = {}  # requests for many users often come with the same rules
        lists = []
        for row, (rule, k) in enumerate(zip(rules, ks, strict=True)):
            if id(rule) not in plans:
                plans[id(rule)] = self._plan(rule)
            lists.append(_List(row, rule, k, plans[id(rule)], self._categories, self._groups, self._index))
        # Where the caps leave room for nothing, nothing is fetched.
        wanted = [
            Wanted(each.row, self._first(each), each.plan.is_open)
            for each in lists
            if each.plan.is_open.any() or not each.settle()
        ]
        while wanted:
            following: list[Wanted] = []
            for some in _of_like_size(wanted):
                check(sum(request.size for request in some))
                pool = fetch(some)
                for at, request in enumerate(some):
                    lists[request.row].add(pool.ids[at], pool.scores[at], pool.orders[at], request.groups)
            for row in dict.fromkeys(request.row for request in wanted):
                if not lists[row].settle():
                    following += lists[row].wanted()
                check(0)
            wanted = following
        return [each.answer for each in lists]

    def _first(self, each: _List) -> int:
        """Return how many items a list is begun with."""
        rows = self._index.rows
        room = each.reach if each.is_capped else each.reach // 4  # caps pass over items
        return min(max(each.reach + room + 16, min(_FIRST, rows // _FIRST_SHARE)), rows)

    def _plan(self, rules: Rules) -> _Plan:
        categories = self._categories
        weights, left = (
            np.zeros(len(categories)),
            np.full(len(categories), min(rules.caps.get(ANY, -1), self._index.rows), dtype=np.int64),
        )
        for values, table in ((weights, rules.boosts), (left, rules.caps)):
            for name, value in table.items():
                if name in categories.numbers:
                    # More than there are items is no cap; and it may be more than fits.
                    values[categories.numbers[name]] = min(value, self._index.rows) if table is rules.caps else value
        gains, is_open = categories.sums(weights), open_groups(self._groups, left)
        return _Plan(gains, np.argsort(-gains, kind="stable"), left, is_open & (categories.sizes > 0))


class _List:
    """One list on its way: the items fetched so far, and the limits of those that were not.

    Attributes:
        row: Its number.
        plan: Its rules.
        reach: Of how many items the boosted order must be known.
        is_capped: Whether there are caps.
        answer: What it came to, once it is settled.
    """

    def __init__(
        self, row: int, rules: Rules, k: int, plan: _Plan, categories: Categories, groups: Groups, index: ItemIndex
    ) -> None:
        self.row, self.plan, self.reach, self.is_capped = row, plan, _reach(rules, k), bool(rules.caps)
        self.answer: Listed
        self._k, self._diversity = k, rules.diversity
        self._categories, self._by_group, self._index = categories, groups, index
        n = categories.n_groups
        self._limits = np.where(categories.sizes > 0, np.inf, -np.inf)
        self._fronts, self._front_ids = np.full(n, np.inf), np.full(n, -1, np.int64)
        self._ids, self._scores, self._orders = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0)
        self._groups, self._seen = np.empty(0, np.int64), np.zeros(n, np.int64)
        # Of a list that is not settled: what the caps leave, how many items it is short of, and the score that it would
        # end with if nothing else came.
        self._left, self._missing, self._last = plan.left, 0, -np.inf
        self._rounds = 0

    def add(self, ids: Ids, scores: Floats, orders: Doubles, groups: Bools) -> None:
        """Take in the best items of some groups: (n,) each, a tail of `NO_ID` where there are no more."""
        present = len(ids) - int(np.count_nonzero(ids == NO_ID))
        if present < len(ids):
            self._limits[groups] = -np.inf
        else:
            is_later = (orders[-1] < self._fronts) | ((orders[-1] == self._fronts) & (ids[-1] > self._front_ids))
            deeper = groups & is_later & (self._limits > -np.inf)
            self._limits[deeper] = np.float64(scores[-1]) + self.plan.gains[deeper]
            self._fronts[deeper], self._front_ids[deeper] = orders[-1], ids[-1]
        ids, scores, orders = ids[:present], scores[:present], orders[:present]
        if len(self._ids):
            ids, scores = np.concatenate([self._ids, ids]), np.concatenate([self._scores, scores])
            orders = np.concatenate([self._orders, orders])
            ids, first = np.unique(ids, return_index=True)  # those that were there before come first
            order = np.lexsort((ids, -orders[first]))
            ids, scores, orders = ids[order], scores[first[order]], orders[first[order]]
        self._ids, self._scores, self._orders = ids, scores, orders
        self._groups = self._categories.groups_of(ids)
        self._seen = np.bincount(self._groups, minlength=len(self._limits))
        self._limits[self._seen == self._categories.sizes] = -np.inf

    def settle(self) -> bool:
        """Make the answer of what is there; return whether no other item could change it."""
        scores = self._scores + self.plan.gains[self._groups]
        order = np.argsort(-scores, kind="stable")
        boosted = Boosted(scores[order], self._orders[order], self._ids[order], self._groups[order])
        taken, picked, self._left = np.zeros(len(order), np.bool_), np.empty(self._k, np.int64), self.plan.left.copy()
        unseen = self._unseen(self.plan.is_open)
        count = 0
        if self._diversity:
            sure = count_sure(boosted, self._by_group, unseen, self._left)
            places = np.flatnonzero(self.plan.is_open[boosted.groups])[: self.reach]
            pool = places[places < sure]
            if len(pool) < self.reach and len(unseen.descending):
                self._missing = self.reach - len(pool)
                self._last = boosted.scores[places[-1]] if len(places) == self.reach else -np.inf
                return False
            count = self._pick_diverse(boosted, pool, taken, picked)
        count = fill(boosted, self._by_group, unseen, self._left, taken, picked, count)
        if count < self._k and len(self._unseen(open_groups(self._by_group, self._left)).descending):
            self._missing = self._k - count
            nothing, left = unseen._replace(descending=unseen.descending[:0]), self._left.copy()
            full = fill(boosted, self._by_group, nothing, left, taken, picked, count) == self._k
            self._last = boosted.scores[picked[-1]] if full else -np.inf
            return False
        picked = picked[:count]
        self.answer = _filled_up(boosted.ids[picked], boosted.scores[picked], self._k)
        return True

    def _unseen(self, wanted: Bools) -> Unseen:
        """Return the bounds of what was not fetched of some groups, (G,) bool."""
        is_unseen = wanted & (self._limits > -np.inf)
        if self._rounds == 0:  # all have the same front
            descending = self.plan.by_gain[is_unseen[self.plan.by_gain]]
        else:
            descending = _descending(np.flatnonzero(is_unseen), self._limits)
        return Unseen(descending, self._limits, self._fronts, self._front_ids)

    def _pick_diverse(self, boosted: Boosted, pool: Ids, taken: Bools, picked: Ids) -> int:
        """Pick from the places of a pool; return how many."""
        # In float64, so that no order of sums decides between two items.
        directions = self._index.vectors(boosted.ids[pool]).astype(np.float64)
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        is_chosen, chosen = np.zeros(len(pool), np.bool_), np.empty(self._k, np.int64)
        scores, groups = boosted.scores[pool], boosted.groups[pool]
        count = pick_diverse(scores, directions, groups, self._by_group, self._left, self._diversity, is_chosen, chosen)
        picked[:count] = pool[chosen[:count]]
        taken[picked[:count]] = True
        return count

    def wanted(self) -> Iterator[Wanted]:
        """Yield what to fetch next: of the groups that could change the list, the best items."""
        self._rounds += 1
        assert self._rounds <= _MOST_ROUNDS, f"{self._rounds} fetches, each of more than was there, and no end"
        is_open = open_groups(self._by_group, self._left)
        concerned = is_open & (self._limits > -np.inf) & (self._limits >= self._last)
        # More from time to time: whatever the scores are like, the fetches are few.
        need = (self._missing + self._missing // 4 + 16) * _GROWTH ** max(self._rounds - 2, 0)
        for part in self._parts(np.flatnonzero(concerned), is_open):
            groups = np.zeros(len(concerned), np.bool_)
            groups[part] = True
            size = min(int(self._seen[part].sum()) + need, int(self._categories.sizes[part].sum()))
            yield Wanted(self.row, size, groups)

    def _parts(self, groups: Ids, is_open: Bools) -> Iterator[Ids]:
        """Divide groups into a few parts, those of unlike gains first."""
        gains = self.plan.gains
        kinds = np.unique(gains[groups])
        if len(kinds) > _PARTS:
            yield from _cut(groups[np.argsort(gains[groups], kind="stable")], self._categories.sizes, _PARTS)
        elif self._rounds == 1:
            # All of a kind, whatever else is known of them: lists of the same rules then share a search.
            for kind in kinds:
                yield np.flatnonzero(is_open & (gains == kind))
        else:
            # A third fetch means that the best items of all of them are of a few groups, which are full soon.
            for kind in kinds:
                yield from _cut(groups[gains[groups] == kind], self._categories.sizes, _PARTS // len(kinds))


def _descending(groups: Ids, limits: Doubles) -> Ids:
    """Return groups by descending limits, which for the most part are few numbers: no sort is needed for these."""
    sorted_groups = []
    for _ in range(_FEW_LIMITS):
        if not len(groups):
            break
        is_highest = limits[groups] == limits[groups].max()
        sorted_groups.append(groups[is_highest])
        groups = groups[~is_highest]
    return np.concatenate([*sorted_groups, groups[np.argsort(-limits[groups], kind="stable")]])


def _cut(groups: Ids, sizes: Ids, pieces: int) -> Iterator[Ids]:
    """Cut groups into at most so many pieces with about as many items each."""
    before = np.cumsum(sizes[groups]) - sizes[groups]
    piece = before * pieces // max(int(sizes[groups].sum()), 1)
    for number in np.unique(piece):
        yield groups[piece == number]


def _of_like_size(wanted: Sequence[Wanted]) -> Iterator[list[Wanted]]:
    """Yield requests that are made at once: of sizes that differ by less than a factor of four."""
    by_size: dict[int, list[Wanted]] = {}
    for request in wanted:
        by_size.setdefault(request.size.bit_length() // 2, []).append(request)
    yield from by_size.values()


def _reach(rules: Rules, k: int) -> int:
    """Return of how many items the boosted order must be known."""
    return min(max(_DIVERSE_PER_PICK * k, _DIVERSE_MIN), _DIVERSE_MAX) if rules.diversity else k


def _filled_up(ids: Ids, scores: Doubles, k: int) -> Listed:
    answer = np.full(k, NO_ID, dtype=np.int64), np.full(k, -np.inf, dtype=np.float32)
    answer[0][: len(ids)], answer[1][: len(ids)] = ids, scores
    return answer
