"""Titles of items, for people to read; answers of the service carry only ids."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from fuserec.errors import BundleError
from fuserec.traffic import served_folder
from fuserec.untrusted.tables import read_table


class Catalogue:
    """What is known of each item by its id.

    Args:
        items: item_id, title and, where known, genres and year.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self._items = {row["item_id"]: row for row in items.iter_rows(named=True)}

    @classmethod
    def open(cls, path: Path) -> Catalogue:
        """Read an `items.parquet`, or that of the version which a repository serves.

        Raises:
            BundleError: There is no such file, or it cannot be read as items.
        """
        if path.is_dir():
            path = served_folder(path) / "items.parquet"
        if not path.is_file():
            raise BundleError(f"{path} is missing; expected an items.parquet or a repository folder")
        items = read_table(path, BundleError)
        if items.schema.get("item_id") != pl.Int64 or "title" not in items.columns:
            raise BundleError(f"{path} has columns {', '.join(items.columns)}; expected item_id int64, title")
        return cls(items)

    def __len__(self) -> int:
        return len(self._items)

    def title(self, item_id: int) -> str:
        """Return `Title (year)`; a dash for an unknown id."""
        row = self._items.get(item_id)
        if row is None:
            return "-"
        return f"{row['title']} ({row['year']})" if row.get("year") else str(row["title"])

    def genres(self, item_id: int) -> str:
        """Return the genres, comma separated; empty where none are known."""
        return ", ".join(self._items.get(item_id, {}).get("genres") or [])
