"""The best items of a user before any rule: found by the search, reordered by the ranker, or the most popular ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.serve.popularity import Popularity
from fuserec.serve.query import Query
from fuserec.serve.recall import Among, Batch, ItemGroups, Recall
from fuserec.serve.reranking import Reranker
from fuserec.serve.rules import Pool, Wanted
from fuserec.serve.stores import Categories
from fuserec.serve.telemetry import RANK, SEARCH, Nobody, Watcher
from fuserec.serve.users import Ids, Users

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
# What the ranker has reordered comes before all else: beyond every float32.
_RANKED: Final = 1e39


class Candidates:
    """Finds items for the rows of a batch; `fuserec.serve.pipeline` has the arguments.

    Attributes:
        reranker: None where there is no ranker.
        watcher: Is told how long each stage takes.
    """

    def __init__(
        self,
        recall: Recall,
        popularity: Popularity,
        users: Users,
        reranker: Reranker | None,
        categories: Categories,
        watcher: Watcher,
    ) -> None:
        self._recall, self._popularity, self._users = recall, popularity, users
        self.reranker, self._categories = reranker, categories
        self.watcher = watcher

    def over(self, recall: Recall) -> Candidates:
        """Return the same over another `Recall`, with nobody who is told anything."""
        parts = self._popularity, self._users, self.reranker, self._categories, Nobody()
        return Candidates(recall, *parts)

    def best(self, batch: Batch, rows: Sequence[int], k: int) -> tuple[Ids, Floats]:
        """Return the k best items, (B, k) ids and scores, of some rows of a batch."""
        ids, scores = self.search(batch, rows, k if self.reranker is None else max(k, self.reranker.candidates))
        ids, scores, _ = self.rank(batch, rows, ids, scores)
        for at in np.flatnonzero(batch.fallback[rows]):
            ids[at, :k], scores[at, :k], _ = self.popular(batch.queries[rows[at]], k)
        return ids[:, :k], scores[:, :k]

    def search(self, batch: Batch, rows: Sequence[int], k: int, groups: Bools | None = None) -> tuple[Ids, Floats]:
        """Return the k best items of the search, all of them or those of some groups, (B, G) bool."""
        with self.watcher.timed(SEARCH):
            among = None if groups is None or groups.all() else Among(self._item_groups, groups)
            ids, scores, certified, _ = self._recall.search(batch, rows, k, among)
            self.watcher.searched(certified)
        return ids, scores

    def rank(self, batch: Batch, rows: Sequence[int], ids: Ids, scores: Floats) -> tuple[Ids, Floats, Ids]:
        """Let the ranker reorder what the search found; return that, and for which rows, (b,) int64, it did."""
        if self.reranker is None:
            return ids, scores, np.empty(0, np.int64)
        # Neither a text nor the lack of everything is something that the ranker could judge by.
        is_read = np.array([not batch.queries[row].text for row in rows])
        judged = np.flatnonzero(~batch.fallback[rows] & is_read)
        with self.watcher.timed(RANK):
            users = batch.known.take(np.asarray(rows)[judged])
            return *self.reranker.reorder(users, ids, scores, judged, self._users.rows), judged

    def popular(self, query: Query, k: int, groups: Bools | None = None) -> tuple[Ids, Floats, Doubles]:
        """Return the k most popular items, of all or of some groups, (G,) bool: (k,) ids, scores and orders."""
        # Of whom nothing is known, nothing is known to have been seen.
        allowed = query.allow if len(query.allow) else None
        is_wanted = None if groups is None or groups.all() else groups[self._popular_groups]
        return self._popularity.top(k, query.exclude, allowed, is_wanted)

    @cached_property
    def _item_groups(self) -> ItemGroups:
        return ItemGroups(self._categories.groups_of(self._recall.item_ids), self._categories.n_groups)

    @cached_property
    def _popular_groups(self) -> Ids:
        return self._categories.groups_of(self._popularity.ids)


class RuleCandidates:
    """Fetches items for the rules of some rows of a batch."""

    def __init__(self, candidates: Candidates, batch: Batch, rows: Sequence[int]) -> None:
        self._candidates, self._batch, self._rows = candidates, batch, rows
        self._begun: set[int] = set()
        # By row, of those that the ranker has reordered: the lowest score of these, and what the search gave the last.
        self._tails: dict[int, tuple[np.float32, np.float32]] = {}

    def __call__(self, wanted: Sequence[Wanted]) -> Pool:
        """Return a list for each request, as `RuleStage.choose` takes them."""
        rows, size = [self._rows[each.row] for each in wanted], max(each.size for each in wanted)
        groups = np.stack([each.groups for each in wanted])
        begun = self._begun.issuperset(rows)  # all of them, or none
        pool = self._go_on(rows, size, groups) if begun else self._begin(rows, size, groups)
        for at in np.flatnonzero(self._batch.fallback[rows]):
            found = self._candidates.popular(self._batch.queries[rows[at]], pool.ids.shape[1], groups[at])
            pool.ids[at], pool.scores[at], pool.orders[at] = found
        return pool

    def _begin(self, rows: Sequence[int], size: int, groups: Bools) -> Pool:
        """Fetch for the first time: what the ranker reorders are the best of all groups."""
        reranker = self._candidates.reranker
        self._begun.update(rows)
        if reranker is None:
            ids, scores = self._candidates.search(self._batch, rows, size, groups)
            return Pool(ids, scores, scores.astype(np.float64))
        ids, raw = self._candidates.search(self._batch, rows, max(size, reranker.candidates))
        ids, scores, judged = self._candidates.rank(self._batch, rows, ids, raw)
        orders = raw.astype(np.float64)
        n = min(reranker.candidates, ids.shape[1])
        if reranker.weight:
            orders[judged, :n] = _RANKED * np.arange(n, 0, -1)
            self._tails |= {rows[at]: (scores[at, n - 1], raw[at, n - 1]) for at in judged}
        return Pool(ids, scores, orders)

    def _go_on(self, rows: Sequence[int], size: int, groups: Bools) -> Pool:
        """Fetch again: beyond what the ranker has reordered its scores go on by the differences of the search's."""
        ids, raw = self._candidates.search(self._batch, rows, size, groups)
        scores = raw.copy()
        for at, row in enumerate(rows):
            if row in self._tails:
                lowest, edge = self._tails[row]
                scores[at] = np.where(ids[at] == NO_ID, -np.inf, lowest + (raw[at] - edge))
        return Pool(ids, scores, raw.astype(np.float64))
