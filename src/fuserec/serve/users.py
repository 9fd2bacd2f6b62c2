"""Who asks, as the networks know them: a row, a history in rows, and what must not be shown to them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.kernels._arrays import read_only
from fuserec.manifest import Manifest
from fuserec.serve.padding import batches
from fuserec.serve.stores import IdMap, UserStore, read_items

if TYPE_CHECKING:
    from fuserec.kernels.search._numba_lookup import People

Ids = NDArray[np.int64]
NO_IDS = np.empty(0, dtype=np.int64)


class Asker(Protocol):
    """What every query says of its user."""

    @property
    def user_id(self) -> int:
        """The caller's own id, `NO_ID` for somebody known only by a history."""

    @property
    def history(self) -> Ids:
        """(L,) item ids, oldest first."""

    @property
    def history_only(self) -> bool:
        """Whether what is stored of the user plays no part."""


@dataclass(frozen=True)
class Known:
    """B users as the networks know them.

    Attributes:
        rows: (B,) int64 user rows, 0 for somebody unknown.
        items: B arrays of item ids, the histories that are read, oldest first.
        histories: the same as item rows (1..I).
        stored: B numbers of users, 0 to n - 1, whose stored history is not to be recommended again; -1 for none.
        given: B arrays of item ids that came with the query and are not to be recommended either.
        ignored: (B,) int32: ids of the history that the catalogue does not hold.
    """

    rows: Ids
    items: list[Ids]
    histories: list[Ids]
    stored: Ids
    given: list[Ids]
    ignored: NDArray[np.int32]

    @property
    def nothing(self) -> NDArray[np.bool_]:
        """(B,) bool: neither the user nor any history is known."""
        nothing: NDArray[np.bool_] = (self.rows == 0) & np.array([not len(items) for items in self.items], dtype=bool)
        return nothing

    def take(self, rows: Ids) -> Known:
        """Return some of the users."""
        lists = (self.items, self.histories, self.given)
        items, histories, given = ([values[row] for row in rows] for values in lists)
        return Known(self.rows[rows], items, histories, self.stored[rows], given, self.ignored[rows])

    @property
    def as_stored(self) -> Ids:
        """(B,) int64: the number of each user of whom the networks read just what is stored; -1 for the others."""
        return np.where([len(given) == 0 for given in self.given], self.stored, -1)

    def padded(self, longest: int, limit: int) -> Iterator[tuple[Ids, dict[str, Ids]]]:
        """Yield all users in batches that a network takes.

        Args:
            longest: Items of a history that the network reads; older ones are cut off.
            limit: Users in a batch.

        Yields:
            Which users, (b,) int64, and the inputs `user` (b,) and `history` (b, L) int64, newest last.
        """
        for width, users in batches([len(history) for history in self.histories], longest, limit):
            table = np.zeros((len(users), width), dtype=np.int64)
            for line, user in zip(table, users, strict=True):
                history = self.histories[user][-width:]
                line[width - len(history) :] = history
            yield users, {"user": self.rows[users], "history": table}


class Users:
    """Ids to rows, and what is stored of each user.

    Attributes:
        stored: What is stored of each user.
    """

    def __init__(self, item_ids: Ids, stored: UserStore) -> None:
        self._items = IdMap(item_ids)
        self.stored = stored
        # Found out once: most callers are known and give no history.
        self._stored_rows = self.rows(stored.items)

    @classmethod
    def load(cls, bundle: Path, manifest: Manifest) -> Users:
        """Read the items and users of a bundle.

        Raises:
            BundleError: They are not what an export writes.
        """
        return cls(read_items(bundle, manifest)["item_id"].to_numpy(), UserStore.load(bundle / "users.parquet"))

    def people(self, owners: Ids) -> People:
        """Return what the compiled look-up reads; `owners` are those of the vectors that are kept."""
        from fuserec.kernels.search._numba_lookup import People

        arrays = (*self.stored.ascending, *self._items.ascending, self._stored_rows, self.stored.offsets, owners)
        return People(*map(read_only, arrays))

    def numbers(self, queries: Sequence[Asker]) -> Ids:
        """Return the numbers of those who ask, (B,) int64 from 0 to n - 1; -1 for somebody unknown."""
        return self.stored.rows(np.array([query.user_id for query in queries], dtype=np.int64))

    def look_up(self, queries: Sequence[Asker], users: Ids) -> Known:
        """Find out what is known of those who ask; `users` are their numbers."""
        items, histories, lists, ignored = [], [], [], np.zeros(len(queries), dtype=np.int32)
        for position, (query, user) in enumerate(zip(queries, users.tolist(), strict=True)):
            given, rows, ignored[position] = self._found(query.history)
            if len(given) or query.history_only:
                items.append(given)
                histories.append(rows)
            else:
                place = self.stored.place(user)
                items.append(self.stored.items[place])
                histories.append(self._stored_rows[place])
            lists.append(given)
        stored = np.where([query.history_only for query in queries], -1, users)
        return Known(users + 1, items, histories, stored, lists, ignored)

    def known(self, ids: Ids) -> tuple[Ids, int]:
        """Return the ids that the catalogue holds, in order, and how many it does not; `NO_ID` is not counted."""
        found, _, ignored = self._found(ids)
        return found, ignored

    def _found(self, ids: Ids) -> tuple[Ids, Ids, int]:
        """Return as `known` does, and between the two the rows 1..I of those ids."""
        if not len(ids):
            return ids, ids, 0
        rows = self.rows(ids)
        if rows.all():
            return ids, rows, 0
        is_known = rows > 0
        known = ids[is_known]
        return known, rows[is_known], int(np.count_nonzero(ids != NO_ID)) - len(known)

    def rows(self, item_ids: Ids) -> Ids:
        """Return the rows 1..I of item ids, 0 where one is unknown."""
        return self._items.rows(item_ids) + 1
