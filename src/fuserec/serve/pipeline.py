"""The pipeline: encode the user -> search the index -> rank -> answer, in one process and with no hop in between."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH, NO_ID, USER_TOWER
from fuserec.errors import BundleError
from fuserec.kernels import ItemIndex, TopK
from fuserec.manifest import Manifest
from fuserec.serve.device import CPU, Device
from fuserec.serve.engine_choice import open_engine
from fuserec.serve.engines import Engine
from fuserec.serve.faults import guarded
from fuserec.serve.plain import PlainAnswers, PlainBatch
from fuserec.serve.popularity import Popularity
from fuserec.serve.query import Query
from fuserec.serve.ranking import RankStage
from fuserec.serve.recall import Batch, Recall
from fuserec.serve.reranking import Reranker
from fuserec.serve.rules import Fetch, RuleStage
from fuserec.serve.stores import Categories, UserStore, read_items
from fuserec.serve.telemetry import ENCODE, RANK, RULES, SEARCH, Nobody, Watcher
from fuserec.serve.texts import TextStage
from fuserec.serve.users import NO_IDS, Ids, Users

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """The encoded users of a batch of B queries.

    Attributes:
        vectors: (B, D) float32.
        fallback: (B,) bool: neither the user nor any history nor a text is known, so the vector says nothing.
        ignored: (B,) int32: ids of the history that the catalogue does not hold.
    """

    vectors: Floats
    fallback: NDArray[np.bool_]
    ignored: NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """What is recommended to one user.

    Attributes:
        item_ids: (k,) int64, best first; the tail is `NO_ID` where fewer than k items are left.
        scores: (k,) float32, descending: similarity of user and item; with a ranker the mean of both opinions, each
            standardized over the candidates; an item's share of all interactions in a fallback. Boosts are added.
            Under a rule of diversity items stand in the order in which they were picked, and scores may ascend.
        fallback: Nothing was known of the user, these are the most popular items.
        ignored: Ids in history, exclude and allow, and categories of the rules, that the catalogue does not hold.
        version: The bundle that answered.
    """

    item_ids: Ids
    scores: Floats
    fallback: bool
    ignored: int
    version: int


class Pipeline:
    """Encode, search and recommend over one bundle.

    Args:
        engine: The user tower: `user` (B,) int64 and `history` (B, L) int64 rows to `user_vector` (B, D) float32.
        index: The item vectors.
        popularity: What is recommended to people of whom nothing is known.
        users: The known users and their histories.
        max_history: Items of a history that the user tower reads.
        texts: Encodes texts; None where the bundle reads none.
        reranker: None where the bundle has no ranker.
        categories: Those of the items, which rules speak of; None where there are none.
        version: The bundle's.
        device: Where the search computes.

    Attributes:
        device: As given.
        process: The one that it is for, where it computes on a GPU; None for any.
        watcher: Is told how long each stage takes; set by who has one. Such a pipeline is for one thread.
    """

    def __init__(
        self,
        engine: Engine,
        index: ItemIndex,
        popularity: Popularity,
        users: Users,
        max_history: int,
        texts: TextStage | None = None,
        reranker: Reranker | None = None,
        categories: Categories | None = None,
        version: int = 0,
        device: Device = CPU,
    ) -> None:
        self.device = device
        self.process = None if device.kind == "cpu" else os.getpid()
        self._recall = Recall(engine, index, users, max_history, texts, device)
        self._index = index
        self._popularity = popularity
        self._users = users
        self._max_history = max_history
        self._texts = texts
        self._reranker = reranker
        self._rules = RuleStage(categories or Categories.none(), index)
        self._version = version
        self.watcher: Watcher = Nobody()

    @classmethod
    def open(cls, bundle: Path, device: Device = CPU) -> Pipeline:
        """Verify a bundle folder (`REPOSITORY/recommend/<version>`) and open it.

        Raises:
            BundleError: A file is missing, is not the one that was published, or is not what it should be.
            DeviceError: The device does not run its networks.
        """
        manifest = Manifest.read(bundle)
        manifest.verify(bundle.parents[1])
        items = read_items(bundle, manifest)
        item_ids = items["item_id"].to_numpy()
        index = ItemIndex.load(bundle / "index.safetensors")
        if (index.rows, index.dim) != (manifest.n_items, manifest.dim):
            raise BundleError(
                f"{bundle / 'index.safetensors'} has {index.rows} items of {index.dim} numbers, the manifest says "
                f"{manifest.n_items} of {manifest.dim}; export again"
            )
        stage, rerank = RankStage.open(bundle, manifest, device), manifest.rerank
        return cls(
            engine=open_engine(bundle, manifest, USER_TOWER, device=device),
            index=index,
            popularity=Popularity(item_ids, items["count"].to_numpy()),
            users=Users(item_ids, UserStore.load(bundle / "users.parquet")),
            max_history=manifest.max_history[USER_TOWER],
            texts=TextStage.open(bundle, manifest, device),
            reranker=None if stage is None or rerank is None else Reranker(stage, rerank.candidates, rerank.weight),
            categories=Categories.of(items),
            version=manifest.version,
            device=device,
        )

    @property
    def dim(self) -> int:
        """Length D of user and item vectors."""
        return self._index.dim

    @property
    def reads_text(self) -> bool:
        """Whether a query may have a text."""
        return self._texts is not None

    @guarded
    def warm_up(self) -> None:
        """Run every stage once, so that the first caller does not wait for compilation."""
        self._recall.warm_up()
        self.recommend([Query(NO_ID, NO_IDS, NO_IDS, 1)])
        if self._texts is not None:
            self._texts.encode([""])

    @guarded
    def warm_up_scores(self) -> None:
        """Run once what `encode` and `scores` take, which search no device."""
        self._index.warm_up("cpu")
        self.encode([Query(NO_ID, NO_IDS, NO_IDS, 1)])

    @guarded
    def encode(self, queries: Sequence[Query]) -> Encoded:
        """Encode the users of B queries; `exclude` and `k` are not read."""
        if not queries:
            return Encoded(np.empty((0, self.dim), np.float32), np.empty(0, np.bool_), np.empty(0, np.int32))
        parts = []
        for some in _batches(queries):
            batch = self._recall.encode(some, self._users.numbers(some))
            parts.append((self._recall.vectors(batch), batch.fallback, batch.known.ignored))
            self._recall.keep(batch)
        return Encoded(*map(np.concatenate, zip(*parts, strict=True)))

    def check_vectors(self, vectors: Floats) -> None:
        """Raise `ValueError` where one of (B, D) vectors has no sound scores."""
        self._index.check_vectors(vectors)

    @guarded
    def search(self, vectors: Floats, k: int, exclude: Sequence[Ids]) -> TopK:
        """Return the k best items for each of (B, D) vectors, without those in B `exclude` arrays."""
        found = self._recall.search_vectors(vectors, k, exclude)
        self.watcher.searched(found.certified)
        return found

    def history(self, query: Query) -> Ids:
        """Return the items that the user tower reads of a query: (L,) item ids, oldest first."""
        return self._users.look_up([query], self._users.numbers([query])).items[0][-self._max_history :]

    def scores(self, vectors: Floats, item_id: int) -> Floats:
        """Return what one item scores for each of (B, D) vectors: (B,) float32.

        Raises:
            ValueError: The catalogue does not hold the item.
        """
        self.check_item(item_id)
        # One item is no work for a device.
        return self._index.search(vectors, 1, allow=self._index.ids == item_id, backend="cpu").scores[:, 0]

    def check_item(self, item_id: int) -> None:
        """Raise `ValueError` where the catalogue does not hold an item."""
        if not len(self._users.known(np.array([item_id], dtype=np.int64))[0]):
            raise ValueError(f"item_id came as {item_id}, which the catalogue does not hold")

    @guarded
    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer B queries: what a user has seen, and what the query excludes, is never recommended.

        Raises:
            ValueError: A query has a text and the bundle reads none.
        """
        return [answer for some in _batches(queries) for answer in self._recommend(some)]

    @guarded
    def recommend_plain(self, asked: PlainBatch) -> PlainAnswers | None:
        """Answer B plain requests as `recommend` does; None where that is not the way for all of them."""
        if self._reranker is not None:
            return None
        with self.watcher.timed(ENCODE):
            looked_up = self._recall.look_up(asked)
        if looked_up is None:
            return None
        with self.watcher.timed(SEARCH):
            best = self._recall.search_plain(looked_up, max(asked.ks))
            self.watcher.searched(best.certified)
        return PlainAnswers(best.ids, best.scores, looked_up.found.ignored.tolist())

    def _recommend(self, queries: Sequence[Query]) -> list[Answer]:
        with self.watcher.timed(ENCODE):
            is_plain = self._reranker is None and all(query.is_plain for query in queries)
            users = self._users.numbers(queries)
            places = self._recall.kept(users) if is_plain else None
            if places is None:
                batch = self._recall.encode(queries, users)
        if places is not None:
            return self._answer_kept(queries, users, places)
        answers: dict[int, Answer] = {}
        for rows in _searched_together(queries):
            answers |= zip(rows, self._answer(batch, rows), strict=True)
        self._recall.keep(batch)
        return [answers[row] for row in range(len(queries))]

    def _answer_kept(self, queries: Sequence[Query], users: Ids, places: Ids) -> list[Answer]:
        """Answer as `_answer` would, by the shortest way: what most calls are, and as cheap as they can be."""
        with self.watcher.timed(SEARCH):
            found = self._recall.search_kept(users, places, max(query.k for query in queries))
            self.watcher.searched(found.certified)
        return [
            Answer(ids[: query.k], scores[: query.k], False, 0, self._version)
            for query, ids, scores in zip(queries, found.ids, found.scores, strict=True)
        ]

    def _answer(self, batch: Batch, rows: Sequence[int]) -> list[Answer]:
        """Answer some rows of a batch, all of which have an allow list or none has."""
        queries = [batch.queries[row] for row in rows]
        size = max(self._rules.pool(query.rules, query.k) if query.rules else query.k for query in queries)
        ids, scores = self._best(batch, rows, size)
        answers = []
        for place, (row, query) in enumerate(zip(rows, queries, strict=True)):
            best = ids[place, : query.k], scores[place, : query.k]
            ignored = int(batch.known.ignored[row]) + self._users.known(query.exclude)[1]
            if query.rules:
                first = ids[place], scores[place]
                with self.watcher.timed(RULES):
                    best = self._rules.choose(query.rules, query.k, first, self._fetch(batch, row))
                ignored += self._rules.unknown(query.rules)
            if len(query.allow):
                ignored += self._users.known(query.allow)[1]
            answers.append(Answer(*best, bool(batch.fallback[row]), ignored, self._version))
        return answers

    def _fetch(self, batch: Batch, row: int) -> Fetch:
        """Return what fetches the best items of one row."""

        def fetch(size: int) -> tuple[Ids, Floats]:
            ids, scores = self._best(batch, [row], size)
            return ids[0], scores[0]

        return fetch

    def _best(self, batch: Batch, rows: Sequence[int], k: int) -> tuple[Ids, Floats]:
        """Return the k best items before any rule, ids and scores, of some rows of a batch."""
        queries = [batch.queries[row] for row in rows]
        fallback = batch.fallback[rows]
        width = k if self._reranker is None else max(k, self._reranker.candidates)
        with self.watcher.timed(SEARCH):
            ids, scores, certified, _ = self._recall.search(batch, rows, width)
            self.watcher.searched(certified)
        if self._reranker is not None:
            # Neither a text nor the lack of everything is something that the ranker could judge by.
            judged = np.flatnonzero(~fallback & np.array([not query.text for query in queries]))
            with self.watcher.timed(RANK):
                users = batch.known.take(np.asarray(rows)[judged])
                ids, scores = self._reranker.reorder(users, ids, scores, judged, self._users.rows)
        for place in np.flatnonzero(fallback):
            # Of whom nothing is known, nothing is known to have been seen.
            query = queries[place]
            allowed = query.allow if len(query.allow) else None
            ids[place, :k], scores[place, :k] = self._popularity.top(k, query.exclude, allowed)
        return ids[:, :k], scores[:, :k]


def _batches(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    """Yield the queries in batches that the networks take."""
    for at in range(0, len(queries), MAX_BATCH):
        yield queries[at : at + MAX_BATCH]


def _searched_together(queries: Sequence[Query]) -> list[list[int]]:
    """Return the rows to search at once: those that ask for nothing special, with allow lists, with rules alone."""
    together: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row, query in enumerate(queries):
        together[1 if len(query.allow) else 2 if query.rules else 0].append(row)
    return [rows for rows in together if rows]
