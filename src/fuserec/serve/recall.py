"""The first stages of the pipeline: a vector for each who asks, and the items whose vectors agree with it best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH, NO_ID
from fuserec.kernels import ItemIndex, KnownQueries, TopK
from fuserec.kernels.search.gpu_bucket import GpuSettings
from fuserec.serve.device import SEARCH_BYTES, Device
from fuserec.serve.engines import Engine
from fuserec.serve.padding import batches
from fuserec.serve.plain import PlainBatch
from fuserec.serve.query import Query
from fuserec.serve.remembered import UserVectors
from fuserec.serve.texts import TextStage
from fuserec.serve.users import Ids, Known, Users

if TYPE_CHECKING:
    from fuserec.kernels.search._numba_lookup import LookedUp, People

Floats = NDArray[np.float32]

# What callers ask for mostly, and what is fetched for rules and rankers.
_WARM_KS: Final = (10, 100)
# Masks of one search, a byte an item and query, at most.
_MASK_BYTES: Final = 64 * 2**20


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


class LookUp(NamedTuple):
    """What was looked up of a plain batch; it holds until the next batch.

    Attributes:
        found: What is known of the users.
        ids: (E,) int64: items that may not come back beside those seen; see `LookedUp.offsets`.
        new: Rows whose vectors were computed for it.
    """

    found: LookedUp
    ids: Ids
    new: list[int]


class Recall:
    """Encodes users and finds their best items; `fuserec.serve.pipeline` has the arguments."""

    def __init__(
        self,
        engine: Engine,
        index: ItemIndex,
        users: Users,
        max_history: int,
        texts: TextStage | None,
        device: Device,
    ) -> None:
        self._engine = engine
        self._device = device
        # Given, not inferred: whether an engine happens to import torch says nothing of where to search.
        self._backend = device.kind
        self._given = index
        self._users = users
        self._max_history = max_history
        self._texts = texts
        stored = users.stored
        self._nobody = len(stored)
        self._rooms: dict[int, LookedUp] = {}
        self._vectors = UserVectors(len(stored), index.dim, MAX_BATCH)

    @cached_property
    def _index(self) -> ItemIndex:
        """What is searched, on the device once it is first needed: who only encodes takes no room there."""
        if self._device.kind != "cpu":
            settings = GpuSettings(kept_bytes=SEARCH_BYTES)
            self._given.to(self._device.kind, rows=self._device.rows, settings=settings)
        return self._given

    @cached_property
    def _known(self) -> KnownQueries:
        """What is known of users, made when it is first needed: who only encodes does not load the search."""
        stored = self._users.stored
        # Found out once: where the stored histories are in the index. The last list is nobody's, and empty.
        seen = self._index.excluded_rows(stored.items, np.append(stored.offsets, stored.offsets[-1]))
        return KnownQueries(self._index, self._vectors.table, seen, backend=self._backend)

    def warm_up(self) -> None:
        """Let the search and the look-up be compiled."""
        self._index.warm_up(self._backend)
        self._known.warm_up()
        ends = np.zeros(2, dtype=np.int64)
        self.look_up(PlainBatch(np.array([NO_ID]), [1], ends[:0], ends, ends[:0], ends))
        if self._backend == "cuda":
            self.warm_up_shapes()

    def warm_up_shapes(self) -> None:
        """Search in the shapes that most calls have: on a GPU each has kernels and a graph of its own."""
        item, place = self._given.ids[:1], self._vectors.room(1)
        self._vectors.table[place] = self._given.embeddings[0]  # any vector that has sound scores
        self._written(place)
        batches = [1 << power for power in range(MAX_BATCH.bit_length())]
        for batch, k in itertools.product(batches, _WARM_KS):
            for also in (None, [item] * batch):
                self._known.search(np.full(batch, self._nobody), np.repeat(place, batch), k, also)

    def kept(self, users: Ids) -> Ids | None:
        """Return the places of the vectors of (B,) users, (B,) int64, where all of them are kept."""
        places, is_kept = self._vectors.find(users)
        return places if is_kept.all() else None

    def search_kept(self, users: Ids, places: Ids, k: int) -> TopK:
        """Return the k best items of users whose vectors are kept, none of which they have seen."""
        return self._known.search(users, places, k)

    def search_vectors(self, vectors: Floats, k: int, exclude: Sequence[Ids]) -> TopK:
        """Return the k best items for each of (B, D) vectors."""
        return self._index.search(vectors, k, exclude=exclude, backend=self._backend)

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
        self._written(places[new])
        seen = np.where(known.stored < 0, self._nobody, known.stored)
        return Batch(queries, known, seen, places, fallback, by_user[users[by_user] >= 0])

    @cached_property
    def _people(self) -> People:
        return self._users.people(self._vectors.owners)

    def _room(self, batch: int) -> LookedUp:
        """Return room for what is looked up of a batch; it is used anew for the next one of the same size."""
        room = self._rooms.get(batch)
        if room is None:
            from fuserec.kernels.search._numba_lookup import allocate_looked_up

            room = self._rooms[batch] = allocate_looked_up(batch, self._max_history)
        return room

    def look_up(self, asked: PlainBatch) -> LookUp | None:
        """Look up those who ask and encode those whose vectors are not kept, whose rows are returned; see `encode`.

        None where nothing is known of one of them.
        """
        from fuserec.kernels.search._numba_lookup import look_up

        lists = asked.history, asked.history_ends, asked.exclude, asked.exclude_ends
        found, ids = self._room(len(asked.users)), np.empty(len(asked.history) + len(asked.exclude), np.int64)
        if not look_up(self._people, asked.users, *lists, found, ids):
            return None
        lengths = found.lengths.tolist()
        new = [row for row, length in enumerate(lengths) if length >= 0]
        for width, some in batches([lengths[row] for row in new], self._max_history, MAX_BATCH):
            rows = np.array(new, dtype=np.int64)[some]
            feed = {"user": found.numbers[rows] + 1, "history": found.rows[rows, self._max_history - width :]}
            self._vectors.table[found.places[rows]] = self._engine.run(feed)["user_vector"]
        if new:
            self._written(found.places[new])
        return LookUp(found, ids, new)

    def search_plain(self, looked_up: LookUp, k: int) -> TopK:
        """Return the k best items of users who were looked up, and keep those of their new vectors that can be."""
        found = looked_up.found
        best = self._known.search_joined(found.lists, found.places, k, looked_up.ids, found.offsets)
        keep = [row for row in looked_up.new if found.keepers[row] >= 0]
        if keep:
            self._written(self._vectors.keep(found.keepers[keep], found.places[keep]))
        return best

    def vectors(self, batch: Batch) -> Floats:
        """Return the vectors of a batch, (B, D) float32."""
        return self._vectors.table[batch.places]

    def keep(self, batch: Batch) -> None:
        """Keep the vectors of a batch that is done with; not before, for it could need one whose place is taken."""
        if len(batch.fresh):
            self._written(self._vectors.keep(batch.known.stored[batch.fresh], batch.places[batch.fresh]))

    def _written(self, places: Ids) -> None:
        """Tell a device that has a copy of the vectors; who only encodes has none."""
        if "_known" in self.__dict__:
            self._known.refresh(places)

    def search(self, batch: Batch, rows: Sequence[int], k: int) -> TopK:
        """Return the k best items of some rows of a batch, all of which have an allow list or none has.

        None of what a user has seen or given, or what the query excludes, is among them.
        """
        seen, places = batch.seen[rows], batch.places[rows]
        unwanted = [_unwanted(batch, row) for row in rows]
        also = unwanted if any(map(len, unwanted)) else None
        if not len(batch.queries[rows[0]].allow):
            return self._known.search(seen, places, k, also)
        step = max(1, _MASK_BYTES // self._index.rows)
        parts = []
        for at in range(0, len(rows), step):
            here = slice(at, at + step)
            excluded = self._known.excluded(seen[here], None if also is None else also[here])
            mask = self._index.mask([batch.queries[row].allow for row in rows[here]])
            vectors = self._vectors.table[places[here]]
            parts.append(self._index.search(vectors, k, exclude=excluded, allow=mask, backend=self._backend))
        return TopK(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _unwanted(batch: Batch, row: int) -> Ids:
    """Return what may not come back beside what is stored: the items that came with the query, in either list."""
    given, unwanted = batch.known.given[row], batch.queries[row].exclude
    if len(given) and len(unwanted):
        return np.concatenate([given, unwanted])
    return given if len(given) else unwanted
