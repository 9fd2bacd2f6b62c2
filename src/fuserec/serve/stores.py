"""What the service knows of its users and items: rows, histories, categories."""

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
OPTIONAL_ITEM_COLUMNS: Final = {"genres": pl.List(pl.String)}
USER_COLUMNS: Final = {"user_id": pl.Int64(), "history": pl.List(pl.Int64)}


def read_items(bundle: Path, manifest: Manifest) -> pl.DataFrame:
    """Read of `items.parquet` of a bundle what serving needs.

    Returns:
        item_id and count, int64, and, where the bundle has them, genres, lists of strings.

    Raises:
        BundleError: It is something else.
    """
    path = bundle / "items.parquet"
    table = read_table(
        path,
        BundleError,
        columns=ITEM_COLUMNS,
        optional=OPTIONAL_ITEM_COLUMNS,
        others=True,
        n_rows=manifest.n_items,
    )
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

    @property
    def ascending(self) -> tuple[Ids, Ids]:
        """The ids in ascending order, and the row of each: (n,) int64 both."""
        return self._sorted, self._order

    def rows(self, ids: Ids) -> Ids:
        """Return the row of each id, -1 where it is unknown; same shape as `ids`."""
        if not len(self):
            return np.full(ids.shape, -1, dtype=np.int64)
        place = self._sorted.searchsorted(ids)  # n beyond the last, which `clip` makes n - 1
        is_known = self._sorted.take(place, mode="clip") == ids
        return np.where(is_known, self._order.take(place, mode="clip"), -1)


class UserStore:
    """Users of the checkpoint and the items each is known to have consumed, oldest first.

    Attributes:
        items: (n,) int64, the item ids of all users, one user after the other.
        offsets: (users + 1,) int64: those of user `u` are `items[offsets[u]:offsets[u + 1]]`.
    """

    def __init__(self, user_ids: Ids, items: Ids, offsets: Ids) -> None:
        self._rows = IdMap(user_ids)
        self.items = items
        self.offsets = offsets

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

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def ascending(self) -> tuple[Ids, Ids]:
        """The ids of the users in ascending order, and the row of each: (n,) int64 both."""
        return self._rows.ascending

    def rows(self, user_ids: Ids) -> Ids:
        """Return the row of each user, -1 for an unknown one."""
        return self._rows.rows(user_ids)

    def place(self, row: int) -> slice:
        """Return where in `items` the items of one user are, oldest first; nowhere for row -1."""
        return slice(0, 0) if row < 0 else slice(*self.offsets[row : row + 2].tolist())


class Categories:
    """Categories of the items. Items of the very same categories form a group, and rules are worked out by group.

    There are far fewer groups than items: 216 for the 1,682 films of MovieLens-100K. Group 0 has no category.

    Args:
        item_ids: (n,) int64, distinct.
        categories: (n,) lists of strings, or null.
    """

    def __init__(self, item_ids: Ids, categories: pl.Series) -> None:
        sets = categories.list.drop_nulls().list.unique().list.sort()
        none = pl.Series([[]], dtype=sets.dtype)
        groups = none.append(sets.drop_nulls()).unique(maintain_order=True)
        numbers = pl.DataFrame({"set": groups}).with_row_index("group")
        of_items = pl.DataFrame({"set": sets}).join(numbers, on="set", how="left", maintain_order="left")["group"]
        # An id that the catalogue does not hold has row -1, the last.
        self._groups = np.append(of_items.fill_null(0).to_numpy().astype(np.int64), 0)
        self._items = IdMap(item_ids)
        members = numbers.explode("set", empty_as_null=False)
        names = members["set"].unique(maintain_order=True)
        self.numbers = {name: number for number, name in enumerate(names)}
        self._by_group = _Lists(
            members["group"].to_numpy().astype(np.int64),
            np.array([self.numbers[name] for name in members["set"]], dtype=np.int64),
            len(groups),
        )
        self._by_category = _Lists(self._by_group.values, self._by_group.owners, len(names))

    @classmethod
    def of(cls, items: pl.DataFrame) -> Categories:
        """Return the `genres` of what `read_items` read; where there are none no item has any category."""
        if "genres" not in items.columns:
            return cls.none()
        return cls(items["item_id"].to_numpy(), items["genres"])

    @classmethod
    def none(cls) -> Categories:
        """Return those of a catalogue in which no item has any."""
        return cls(np.empty(0, dtype=np.int64), pl.Series([], dtype=pl.List(pl.String)))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return len(self._by_group)

    def groups_of(self, item_ids: Ids) -> Ids:
        """Return the group of each item; same shape as `item_ids`."""
        return self._groups[self._items.rows(item_ids)]

    def of_group(self, group: int) -> Ids:
        """Return the numbers of the categories that the items of a group have."""
        return self._by_group[group]

    def groups_with(self, category: int) -> Ids:
        """Return the groups whose items have a category."""
        return self._by_category[category]

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return for each group the sum over its categories of a value a category."""
        totals = np.bincount(self._by_group.owners, values[self._by_group.values], self.n_groups)
        return totals.astype(np.float64, copy=False)


class _Lists:
    """Lists of numbers end to end: `values[i]` belongs to list `owners[i]`, 0 to n - 1."""

    def __init__(self, owners: Ids, values: Ids, n: int) -> None:
        order = np.argsort(owners, kind="stable")
        self.owners, self.values = owners[order], values[order]
        self._ends = np.searchsorted(self.owners, np.arange(n + 1))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, owner: int) -> Ids:
        return self.values[self._ends[owner] : self._ends[owner + 1]]
