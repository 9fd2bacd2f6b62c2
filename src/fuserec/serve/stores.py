"""What the service knows of its users and items: rows, histories, popularity."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fuserec.errors import BundleError
from fuserec.manifest import Manifest
from fuserec.untrusted.tables import read_table, require_no_nulls

Ids = NDArray[np.int64]
ITEM_COLUMNS: Final = {"item_id": pl.Int64(), "count": pl.Int64()}
USER_COLUMNS: Final = {"user_id": pl.Int64(), "history": pl.List(pl.Int64)}


def read_items(bundle: Path, manifest: Manifest) -> pl.DataFrame:
    """Read of `items.parquet` of a bundle what serving needs: item_id and count, int64.

    Raises:
        BundleError: It is something else.
    """
    path = bundle / "items.parquet"
    table = read_table(path, BundleError, columns=ITEM_COLUMNS, others=True, n_rows=manifest.n_items)
    require_no_nulls(path, table, BundleError, *ITEM_COLUMNS)
    return table


class IdMap:
    """Caller's int64 ids to rows 0..n-1.

    Args:
        ids: (n,) int64, distinct; row r belongs to `ids[r]`.
    """

    def __init__(self, ids: Ids) -> None:
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]

    def __len__(self) -> int:
        return len(self._sorted)

    def rows(self, ids: Ids) -> Ids:
        """Return the row of each id, -1 where it is unknown; same shape as `ids`."""
        if not len(self):
            return np.full(ids.shape, -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self._sorted, ids), len(self._sorted) - 1)
        return np.where(self._sorted[place] == ids, self._order[place], -1)


class UserStore:
    """Users of the checkpoint and the items each is known to have consumed, oldest first."""

    def __init__(self, user_ids: Ids, items: Ids, offsets: Ids) -> None:
        self._rows = IdMap(user_ids)
        self._items = items
        self._offsets = offsets

    @classmethod
    def load(cls, path: Path) -> UserStore:
        """Read `users.parquet` of a bundle: user_id int64, history list of int64.

        Raises:
            BundleError: It is something else.
        """
        table = read_table(path, BundleError, columns=USER_COLUMNS, others=True)
        require_no_nulls(path, table, BundleError, *USER_COLUMNS)
        offsets = np.zeros(table.height + 1, dtype=np.int64)
        np.cumsum(table["history"].list.len().to_numpy(), out=offsets[1:])
        items = table["history"].explode(empty_as_null=False).to_numpy()
        return cls(table["user_id"].to_numpy(), items, offsets)

    def rows(self, user_ids: Ids) -> Ids:
        """Return the row of each user, -1 for an unknown one."""
        return self._rows.rows(user_ids)

    def history(self, row: int) -> Ids:
        """Return the item ids of one user, oldest first; empty for row -1."""
        if row < 0:
            return self._items[:0]
        return self._items[self._offsets[row] : self._offsets[row + 1]]
