"""The pipeline: encode the user -> search the index -> rank -> answer, in one process and with no hop in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH, NO_ID, USER_TOWER
from fuserec.errors import BundleError
from fuserec.kernels import ExcludedRows, ItemIndex, KnownQueries, TopK
from fuserec.manifest import Manifest
from fuserec.rules import NO_RULES, Rules
from fuserec.serve.engines import Engine, open_engine
from fuserec.serve.popularity import Popularity
from fuserec.serve.ranking import RankStage
from fuserec.serve.remembered import UserVectors
from fuserec.serve.reranking import Reranker
from fuserec.serve.rules import Fetch, RuleStage
from fuserec.serve.stores import Categories, UserStore, read_items
from fuserec.serve.telemetry import ENCODE, RANK, RULES, SEARCH, Nobody, Watcher
from fuserec.serve.texts import TextStage
from fuserec.serve.users import NO_IDS, Ids, Known, Users

Floats = NDArray[np.float32]

# Masks of one search, a byte an item and query, at most.
_MASK_BYTES: Final = 64 * 2**20


@dataclass(frozen=True)
class Query:
    """What is asked for one user.

    Attributes:
        user_id: The caller's own id, `NO_ID` for somebody known only by a history.
        history: (L,) item ids, oldest first. When it names no item of the catalogue, what the bundle has stored
            of this user takes its place.
        exclude: (E,) item ids that must not be recommended, beside those already seen.
        k: How many items to return.
        history_only: `history` is all there is: what the bundle has stored of the user is neither read nor excluded.
        text: What the user is after, in place of who they are; empty for none. What they have seen stays excluded.
        allow: (A,) the only item ids that may be recommended; empty where all may.
        rules: Boosts, caps, diversity.

    Raises:
        ValueError: The rules are not for a list of k.
    """

    user_id: int
    history: Ids
    exclude: Ids
    k: int
    history_only: bool = False
    text: str = ""
    allow: Ids = field(default_factory=lambda: NO_IDS)
    rules: Rules = NO_RULES

    def __post_init__(self) -> None:
        if self.rules:
            self.rules.check_k(self.k)

    @property
    def is_plain(self) -> bool:
        """Whether it asks for the best items of a user, and nothing else."""
        lists = len(self.history) or len(self.exclude) or len(self.allow)
        return not (lists or self.history_only or self.text or self.rules)


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


@dataclass(frozen=True)
class _Batch:
    """B queries on their way, and what is known of their users."""

    queries: Sequence[Query]
    known: Known
    users: Encoded


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

    Attributes:
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
    ) -> None:
        self._engine = engine
        self._index = index
        self._popularity = popularity
        self._users = users
        self._max_history = max_history
        self._texts = texts
        self._reranker = reranker
        self._rules = RuleStage(categories or Categories.none(), index)
        self._version = version
        self.watcher: Watcher = Nobody()
        # Found out once: where the stored histories are in the index.
        self._seen = index.excluded_rows(users.stored.items, users.stored.offsets)
        self._vectors = UserVectors(len(users.stored), index.dim)
        self._known = KnownQueries(index, self._vectors.table, self._seen)

    @classmethod
    def open(cls, bundle: Path) -> Pipeline:
        """Verify a bundle folder (`REPOSITORY/recommend/<version>`) and open it.

        Raises:
            BundleError: A file is missing, is not the one that was published, or is not what it should be.
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
        stage, rerank = RankStage.open(bundle, manifest), manifest.rerank
        return cls(
            engine=open_engine(bundle, manifest, USER_TOWER),
            index=index,
            popularity=Popularity(item_ids, items["count"].to_numpy()),
            users=Users(item_ids, UserStore.load(bundle / "users.parquet")),
            max_history=manifest.max_history[USER_TOWER],
            texts=TextStage.open(bundle, manifest),
            reranker=None if stage is None or rerank is None else Reranker(stage, rerank.candidates, rerank.weight),
            categories=Categories.of(items),
            version=manifest.version,
        )

    @property
    def dim(self) -> int:
        """Length D of user and item vectors."""
        return self._index.dim

    @property
    def reads_text(self) -> bool:
        """Whether a query may have a text."""
        return self._texts is not None

    def warm_up(self) -> None:
        """Run every stage once, so that the first caller does not wait for compilation."""
        self._index.warm_up()
        self._known.warm_up()
        self.recommend([Query(NO_ID, NO_IDS, NO_IDS, 1)])
        if self._texts is not None:
            self._texts.encode([""])

    def encode(self, queries: Sequence[Query]) -> Encoded:
        """Encode the users of B queries; `exclude` and `k` are not read."""
        return self._encode(queries, self._users.look_up(queries))

    def search(self, vectors: Floats, k: int, exclude: Sequence[Ids]) -> TopK:
        """Return the k best items for each of (B, D) vectors, without those in B `exclude` arrays."""
        return self._search(vectors, k, exclude)

    def history(self, query: Query) -> Ids:
        """Return the items that the user tower reads of a query: (L,) item ids, oldest first."""
        return self._users.look_up([query]).items[0][-self._max_history :]

    def scores(self, vectors: Floats, item_id: int) -> Floats:
        """Return what one item scores for each of (B, D) vectors: (B,) float32.

        Raises:
            ValueError: The catalogue does not hold the item.
        """
        self.check_item(item_id)
        return self._index.search(vectors, 1, allow=self._index.ids == item_id).scores[:, 0]

    def check_item(self, item_id: int) -> None:
        """Raise `ValueError` where the catalogue does not hold an item."""
        if not len(self._users.known(np.array([item_id], dtype=np.int64))[0]):
            raise ValueError(f"item_id came as {item_id}, which the catalogue does not hold")

    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer B queries: what a user has seen, and what the query excludes, is never recommended.

        Raises:
            ValueError: A query has a text and the bundle reads none.
        """
        if not queries:
            return []
        with self.watcher.timed(ENCODE):
            kept = self._kept(queries)
            if kept is None:
                known = self._users.look_up(queries)
                batch = _Batch(queries, known, self._encode(queries, known))
        if kept is not None:
            return self._answer_kept(queries, *kept)
        answers: dict[int, Answer] = {}
        for rows in _searched_together(queries):
            answers |= zip(rows, self._answer(batch, rows), strict=True)
        return [answers[row] for row in range(len(queries))]

    def _kept(self, queries: Sequence[Query]) -> tuple[Ids, Ids] | None:
        """Return users and the places of their vectors, (B,) each, where all are kept and all queries are plain."""
        if self._reranker is not None or not all(query.is_plain for query in queries):
            return None
        users = self._users.numbers(queries)
        places, is_kept = self._vectors.find(users)
        return (users, places) if is_kept.all() else None

    def _answer_kept(self, queries: Sequence[Query], users: Ids, places: Ids) -> list[Answer]:
        """Answer as `_answer` would, by the shortest way: what most calls are, and as cheap as they can be."""
        with self.watcher.timed(SEARCH):
            found = self._known.search(users, places, max(query.k for query in queries))
            self.watcher.searched(found.certified)
        return [
            Answer(ids[: query.k], scores[: query.k], False, 0, self._version)
            for query, ids, scores in zip(queries, found.ids, found.scores, strict=True)
        ]

    def _answer(self, batch: _Batch, rows: Sequence[int]) -> list[Answer]:
        """Answer some rows of a batch, all of which have an allow list or none has."""
        queries = [batch.queries[row] for row in rows]
        size = max(self._rules.pool(query.rules, query.k) if query.rules else query.k for query in queries)
        ids, scores = self._best(batch, rows, size)
        answers = []
        for place, (row, query) in enumerate(zip(rows, queries, strict=True)):
            best = ids[place, : query.k], scores[place, : query.k]
            ignored = int(batch.users.ignored[row]) + self._users.known(query.exclude)[1]
            if query.rules:
                first = ids[place], scores[place]
                with self.watcher.timed(RULES):
                    best = self._rules.choose(query.rules, query.k, first, self._fetch(batch, row))
                ignored += self._rules.unknown(query.rules)
            if len(query.allow):
                ignored += self._users.known(query.allow)[1]
            answers.append(Answer(*best, bool(batch.users.fallback[row]), ignored, self._version))
        return answers

    def _fetch(self, batch: _Batch, row: int) -> Fetch:
        """Return what fetches the best items of one row."""

        def fetch(size: int) -> tuple[Ids, Floats]:
            ids, scores = self._best(batch, [row], size)
            return ids[0], scores[0]

        return fetch

    def _best(self, batch: _Batch, rows: Sequence[int], k: int) -> tuple[Ids, Floats]:
        """Return the k best items before any rule, ids and scores, of some rows of a batch."""
        queries = [batch.queries[row] for row in rows]
        allow = [query.allow for query in queries] if len(queries[0].allow) else None
        fallback = batch.users.fallback[rows]
        width = k if self._reranker is None else max(k, self._reranker.candidates)
        with self.watcher.timed(SEARCH):
            ids, scores = self._find(batch, rows, width, allow)
        if self._reranker is not None:
            # Neither a text nor the lack of everything is something that the ranker could judge by.
            judged = np.flatnonzero(~fallback & np.array([not query.text for query in queries]))
            with self.watcher.timed(RANK):
                users = batch.known.take(np.asarray(rows)[judged])
                ids, scores = self._reranker.reorder(users, ids, scores, judged, self._users.rows)
        for place in np.flatnonzero(fallback):
            # Of whom nothing is known, nothing is known to have been seen.
            allowed = None if allow is None else allow[place]
            ids[place, :k], scores[place, :k] = self._popularity.top(k, queries[place].exclude, allowed)
        return ids[:, :k], scores[:, :k]

    def _find(self, batch: _Batch, rows: Sequence[int], k: int, allow: Sequence[Ids] | None) -> tuple[Ids, Floats]:
        """Search for b rows of a batch, with their allowed items, if any; (b, k) ids and scores."""
        vectors = batch.users.vectors[rows]
        if allow is None:
            found = self._search(vectors, k, self._excluded(batch, rows))
            return found.ids, found.scores
        step = max(1, _MASK_BYTES // self._index.rows)
        parts = []
        for at in range(0, len(vectors), step):
            here = slice(at, at + step)
            excluded = self._excluded(batch, rows[here])
            mask = self._index.mask(allow[here])
            parts.append(self._search(vectors[here], k, excluded, mask))
        return np.concatenate([part.ids for part in parts]), np.concatenate([part.scores for part in parts])

    def _search(self, vectors: Floats, k: int, exclude: object, allow: NDArray[np.bool_] | None = None) -> TopK:
        found = self._index.search(vectors, k, exclude=exclude, allow=allow)
        self.watcher.searched(found.certified)
        return found

    def _excluded(self, batch: _Batch, rows: Sequence[int]) -> ExcludedRows:
        """Return what may not come back for some rows of a batch: what was seen, and what the query excludes."""
        lists = []
        for row in rows:
            user, given, unwanted = batch.known.stored[row], batch.known.given[row], batch.queries[row].exclude
            first, end = (0, 0) if user < 0 else self._seen.offsets[user : user + 2].tolist()
            seen = self._seen.rows[first:end]
            if len(given) or len(unwanted):
                also = np.concatenate([given, unwanted])
                seen = np.union1d(seen, self._index.excluded_rows(also, np.array([0, len(also)])).rows)
            lists.append(seen)
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(seen) for seen in lists], out=offsets[1:])
        return ExcludedRows(np.concatenate(lists), offsets, self._index.rows)

    def _encode(self, queries: Sequence[Query], known: Known) -> Encoded:
        users = known.as_stored
        places, is_kept = self._vectors.find(users)
        vectors = self._vectors.table[places]
        new = np.flatnonzero(~is_kept)
        if len(new):
            for some, feed in known.take(new).padded(self._max_history, MAX_BATCH):
                vectors[new[some]] = self._engine.run(feed)["user_vector"]
            kept = new[users[new] >= 0]
            self._vectors.write(users[kept], vectors[kept])
        fallback = known.nothing
        texts = [row for row, query in enumerate(queries) if query.text]
        if texts:
            if self._texts is None:
                raise ValueError("a text came, and the model reads none; expected a user id or a history")
            vectors[texts] = self._texts.encode([queries[row].text for row in texts])
            fallback[texts] = False
        return Encoded(vectors, fallback, known.ignored)


def _searched_together(queries: Sequence[Query]) -> list[list[int]]:
    """Return the rows to search at once: those that ask for nothing special, with allow lists, with rules alone."""
    together: tuple[list[int], list[int], list[int]] = ([], [], [])
    for row, query in enumerate(queries):
        together[1 if len(query.allow) else 2 if query.rules else 0].append(row)
    return [rows for rows in together if rows]
