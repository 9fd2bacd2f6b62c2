"""The first stages of the pipeline: a vector for each who asks, and the items whose vectors agree with it best."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH
from fuserec.kernels import ExcludedRows, ItemIndex, KnownQueries, TopK
from fuserec.serve._numba_picking import keep_groups
from fuserec.serve.engines import Engine
from fuserec.serve.query import Query
from fuserec.serve.remembered import UserVectors
from fuserec.serve.texts import TextStage
from fuserec.serve.users import Ids, Known, Users

Floats = NDArray[np.float32]

# Masks of one search, a byte an item and query, at most.
_MASK_BYTES: Final = 64 * 2**20
# Vectors that a twin keeps.
_TWIN_BYTES: Final = 2**20
# Rows that look among the same items share a search, and a mask, where so many do.
_FEW: Final = 4


@dataclass(frozen=True)
class Batch:
    """B queries on their way, B at most `MAX_BATCH`, and what is known of their users.

    Attributes:
        queries: As they came.
        known: What is known.
        seen: (B,) int64: the number of the list of what each has seen.
        places: (B,) int64: where the vector of each is.
        fallback: (B,) bool: neither the user nor any history nor a text is known, so the vector says nothing.
        fresh: Rows whose vectors were computed and can be kept.
    """

    queries: Sequence[Query]
    known: Known
    seen: Ids
    places: Ids
    fallback: NDArray[np.bool_]
    fresh: Ids


@dataclass(frozen=True)
class Among:
    """The items among which rows look.

    Attributes:
        item_groups: (N,) int32: the group of each item, in the order of the index.
        groups: (B, G) bool: the groups for each row.
    """

    item_groups: NDArray[np.int32]
    groups: NDArray[np.bool_]

    def alike(self) -> list[NDArray[np.int64]]:
        """Return the rows that look among the same items, together."""
        alike: dict[bytes, list[int]] = {}
        for row, groups in enumerate(self.groups):
            alike.setdefault(groups.tobytes(), []).append(row)
        return [np.array(rows) for rows in alike.values()]

    def narrow(self, row: int, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Unset in a mask, (N,) bool, the items at which a row does not look, and return it."""
        keep_groups(self.item_groups, self.groups[row], mask)
        return mask


class Recall:
    """Encodes users and finds their best items; `fuserec.serve.pipeline` has the arguments."""

    def __init__(
        self, engine: Engine, index: ItemIndex, users: Users, max_history: int, texts: TextStage | None
    ) -> None:
        self._engine = engine
        self._index = index
        self._users = users
        self._max_history = max_history
        self._texts = texts
        stored = users.stored
        self._nobody = len(stored)
        self._vectors = UserVectors(len(stored), index.dim, MAX_BATCH)

    def twin(self) -> Recall:
        """Return another for the thread of who calls this, over the same tables; it keeps few vectors."""
        twin = copy.copy(self)
        stored = self._users.stored
        twin._vectors = UserVectors(len(stored), self._index.dim, MAX_BATCH, most_bytes=_TWIN_BYTES)
        twin._known = KnownQueries(self._index, twin._vectors.table, self._seen)
        return twin

    @cached_property
    def _known(self) -> KnownQueries:
        """What is known of users, made when it is first needed: who only encodes does not load the search."""
        return KnownQueries(self._index, self._vectors.table, self._seen)

    @cached_property
    def _seen(self) -> ExcludedRows:
        """Where the stored histories are in the index, found out once. The last list is nobody's, and empty."""
        stored = self._users.stored
        return self._index.excluded_rows(stored.items, np.append(stored.offsets, stored.offsets[-1]))

    @property
    def item_ids(self) -> Ids:
        """Item ids in the order of the index, (N,) int64."""
        return self._index.ids

    def warm_up(self) -> None:
        """Let the search be compiled."""
        self._index.warm_up()
        self._known.warm_up()

    def kept(self, users: Ids) -> Ids | None:
        """Return the places of the vectors of (B,) users, (B,) int64, where all of them are kept."""
        places, is_kept = self._vectors.find(users)
        return places if is_kept.all() else None

    def search_kept(self, users: Ids, places: Ids, k: int) -> TopK:
        """Return the k best items of users whose vectors are kept, none of which they have seen."""
        return self._known.search(users, places, k)

    def encode(self, queries: Sequence[Query], numbers: Ids) -> Batch:
        """Encode the users of B queries, whose numbers are given. The vectors stay where they are until the next batch.

        Raises:
            ValueError: A query has a text and the bundle reads none.
        """
        known = self._users.look_up(queries, numbers)
        users = known.as_stored
        places, is_kept = self._vectors.find(users)
        texts = [row for row, query in enumerate(queries) if query.text]
        is_kept[texts] = False
        new = np.flatnonzero(~is_kept)
        places[new] = self._vectors.room(len(new))
        by_user = np.setdiff1d(new, texts) if texts else new
        if len(by_user):
            some_known = known if len(by_user) == len(queries) else known.take(by_user)
            for some, feed in some_known.padded(self._max_history, MAX_BATCH):
                self._vectors.table[places[by_user[some]]] = self._engine.run(feed)["user_vector"]
        fallback = known.nothing
        if texts:
            if self._texts is None:
                raise ValueError("a text came, and the model reads none; expected a user id or a history")
            self._vectors.table[places[texts]] = self._texts.encode([queries[row].text for row in texts])
            fallback[texts] = False
        seen = np.where(known.stored < 0, self._nobody, known.stored)
        return Batch(queries, known, seen, places, fallback, by_user[users[by_user] >= 0])

    def vectors(self, batch: Batch) -> Floats:
        """Return the vectors of a batch, (B, D) float32."""
        return self._vectors.table[batch.places]

    def keep(self, batch: Batch) -> None:
        """Keep the vectors of a batch that is done with; not before, for it could need one whose place is taken."""
        if len(batch.fresh):
            self._vectors.keep(batch.known.stored[batch.fresh], batch.places[batch.fresh])

    def search(self, batch: Batch, rows: Sequence[int], k: int, among: Among | None = None) -> TopK:
        """Return the k best items of some rows of a batch, all of which have an allow list or none has.

        None of what a user has seen or given, or what the query excludes, is among them.
        """
        seen, places = batch.seen[rows], batch.places[rows]
        unwanted = [_unwanted(batch, row) for row in rows]
        also = unwanted if any(map(len, unwanted)) else None
        has_lists = len(batch.queries[rows[0]].allow) > 0
        if not has_lists and among is None:
            return self._known.search(seen, places, k, also)
        if among is not None and not has_lists and len(alike := among.alike()) * _FEW <= len(rows) + _FEW:
            return self._search_alike(seen, places, k, also, among, alike)
        step = max(1, _MASK_BYTES // self._index.rows)
        parts = []
        for at in range(0, len(rows), step):
            here = slice(at, at + step)
            excluded = self._known.excluded(seen[here], None if also is None else also[here])
            if has_lists:
                mask = self._index.mask([batch.queries[row].allow for row in rows[here]])
            else:
                mask = np.ones((len(rows[here]), self._index.rows), np.bool_)
            if among is not None:
                for line, row in zip(mask, range(at, len(rows)), strict=False):
                    among.narrow(row, line)
            parts.append(self._index.search(self._vectors.table[places[here]], k, exclude=excluded, allow=mask))
        return TopK(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _search_alike(
        self, seen: Ids, places: Ids, k: int, also: list[Ids] | None, among: Among, alike: Sequence[Ids]
    ) -> TopK:
        """Return the k best items of rows of which many look among the same: a mask for each kind."""
        parts = []
        for rows in alike:
            excluded = self._known.excluded(seen[rows], None if also is None else [also[row] for row in rows])
            mask = among.narrow(int(rows[0]), np.ones(self._index.rows, np.bool_))
            parts.append(self._index.search(self._vectors.table[places[rows]], k, exclude=excluded, allow=mask))
        order = np.argsort(np.concatenate(alike))
        return TopK(*(np.concatenate(values)[order] for values in zip(*parts, strict=True)))


def _unwanted(batch: Batch, row: int) -> Ids:
    """Return what may not come back beside what is stored: the items that came with the query, in either list."""
    given, unwanted = batch.known.given[row], batch.queries[row].exclude
    if len(given) and len(unwanted):
        return np.concatenate([given, unwanted])
    return given if len(given) else unwanted
