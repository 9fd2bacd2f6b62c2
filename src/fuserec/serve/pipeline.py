"""The pipeline: encode the user -> search the index -> answer, in one process and with no hop in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH, NO_ID
from fuserec.kernels import ItemIndex, TopK
from fuserec.manifest import Manifest
from fuserec.serve.engines import Engine, open_engine
from fuserec.serve.popularity import Popularity
from fuserec.serve.stores import IdMap, UserStore

Ids = NDArray[np.int64]
NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Query:
    """What is asked for one user.

    Attributes:
        user_id: The caller's own id, `NO_ID` for somebody known only by a history.
        history: (L,) item ids, oldest first. When it names no item of the catalogue, what the bundle has stored
            of this user takes its place.
        exclude: (E,) item ids that must not be recommended, beside those already seen.
        k: How many items to return.
    """

    user_id: int
    history: Ids
    exclude: Ids
    k: int


@dataclass(frozen=True)
class Encoded:
    """The encoded users of a batch of B queries.

    Attributes:
        vectors: (B, D) float32.
        seen: B arrays of item ids that each user has consumed, as far as is known.
        fallback: (B,) bool: neither the user nor any history is known, so the vector says nothing.
        ignored: (B,) int32: ids of the history that the catalogue does not hold.
    """

    vectors: NDArray[np.float32]
    seen: list[Ids]
    fallback: NDArray[np.bool_]
    ignored: NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """What is recommended to one user.

    Attributes:
        item_ids: (k,) int64, best first; the tail is `NO_ID` where fewer than k items are left.
        scores: (k,) float32: similarity of user and item, or an item's share of all interactions in a fallback.
        fallback: Nothing was known of the user, these are the most popular items.
        ignored: Ids in history and exclude that the catalogue does not hold.
    """

    item_ids: Ids
    scores: NDArray[np.float32]
    fallback: bool
    ignored: int


class Pipeline:
    """Encode, search and recommend over one bundle.

    Args:
        engine: The user tower: `user` (B,) int64 and `history` (B, L) int64 rows to `user_vector` (B, D) float32.
        index: The item vectors.
        items: `items.parquet`: item_id, count; line r is row r + 1 of the user tower.
        users: The known users; row r is row r + 1 of the user tower.
        max_history: Items of a history that the user tower reads.
    """

    def __init__(
        self, engine: Engine, index: ItemIndex, items: pl.DataFrame, users: UserStore, max_history: int
    ) -> None:
        self._engine = engine
        self._index = index
        self._users = users
        self._max_history = max_history
        item_ids = items["item_id"].to_numpy()
        self._item_rows = IdMap(item_ids)
        self._popularity = Popularity(item_ids, items["count"].to_numpy())

    @classmethod
    def open(cls, bundle: Path) -> Pipeline:
        """Verify a bundle folder (`REPOSITORY/recommend/1`) and open it.

        Raises:
            BundleError: A file is missing or is not the one that was published.
        """
        manifest = Manifest.read(bundle)
        manifest.verify(bundle.parents[1])
        return cls(
            engine=open_engine(bundle, manifest),
            index=ItemIndex.load(bundle / "index.safetensors"),
            items=pl.read_parquet(bundle / "items.parquet", columns=["item_id", "count"]),
            users=UserStore.load(bundle / "users.parquet"),
            max_history=manifest.max_history,
        )

    @property
    def dim(self) -> int:
        """Length D of user and item vectors."""
        return self._index.dim

    def warm_up(self) -> None:
        """Run every stage once, so that the first caller does not wait for compilation."""
        nobody = Query(NO_ID, NO_IDS, NO_IDS, 1)
        self.search(self.encode([nobody]).vectors, 1, [NO_IDS])
        self.recommend([nobody])

    def encode(self, queries: Sequence[Query]) -> Encoded:
        """Encode the users of B queries; `exclude` and `k` are not read."""
        user_rows = self._users.rows(np.array([query.user_id for query in queries], dtype=np.int64))
        histories, seen, ignored = [], [], np.zeros(len(queries), dtype=np.int32)
        for position, (query, user_row) in enumerate(zip(queries, user_rows, strict=True)):
            given, ignored[position] = self._known(query.history)
            stored = self._users.history(int(user_row))
            history = given if len(given) else stored
            histories.append(self._item_rows.rows(history[-self._max_history :]) + 1)
            seen.append(np.concatenate([stored, given]))
        fallback = (user_rows < 0) & np.array([len(history) == 0 for history in histories], dtype=bool)
        parts = [
            self._run(user_rows[at : at + MAX_BATCH] + 1, histories[at : at + MAX_BATCH])
            for at in range(0, len(queries), MAX_BATCH)
        ]
        vectors = np.concatenate(parts) if parts else np.empty((0, self.dim), dtype=np.float32)
        return Encoded(vectors, seen, fallback, ignored)

    def search(self, vectors: NDArray[np.float32], k: int, exclude: Sequence[Ids]) -> TopK:
        """Return the k best items for each of (B, D) vectors, without those in B `exclude` arrays."""
        return self._index.search(vectors, k, exclude=exclude)

    def recommend(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer B queries: what a user has seen, and what the query excludes, is never recommended."""
        if not queries:
            return []
        users = self.encode(queries)
        excluded = [np.concatenate([seen, query.exclude]) for seen, query in zip(users.seen, queries, strict=True)]
        found = self.search(users.vectors, max(query.k for query in queries), excluded)
        answers = []
        for row, query in enumerate(queries):
            if users.fallback[row]:
                ids, scores = self._popularity.top(query.k, excluded[row])
            else:
                ids, scores = found.ids[row, : query.k], found.scores[row, : query.k]
            ignored = int(users.ignored[row]) + self._known(query.exclude)[1]
            answers.append(Answer(ids, scores, bool(users.fallback[row]), ignored))
        return answers

    def _known(self, ids: Ids) -> tuple[Ids, int]:
        """Return the ids that the catalogue holds, in order, and how many it does not; `NO_ID` is not counted."""
        ids = ids[ids != NO_ID]
        known = ids[self._item_rows.rows(ids) >= 0]
        return known, len(ids) - len(known)

    def _run(self, user_rows: Ids, histories: Sequence[Ids]) -> NDArray[np.float32]:
        """Pad to the length of the longest history, newest item last, and run the engine."""
        length = max(1, *(len(history) for history in histories))
        padded = np.zeros((len(histories), length), dtype=np.int64)
        for row, history in zip(padded, histories, strict=True):
            if len(history):
                row[-len(history) :] = history
        output: NDArray[np.float32] = self._engine.run({"user": user_rows, "history": padded})["user_vector"]
        return output
