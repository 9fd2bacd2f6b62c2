"""Data folders, and the real files of other libraries that lie beside this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pytest

FILES = Path(__file__).parent

DataWriter = Callable[..., Path]


@pytest.fixture
def write_data(tmp_path: Path) -> DataWriter:
    """Return a function that writes a data folder of (user id, item id) pairs, oldest first, and items."""

    def write(pairs: Iterable[tuple[int, int]], items: Iterable[int], name: str = "data") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        users, consumed = zip(*pairs, strict=True)
        table = {"user_id": users, "item_id": consumed, "timestamp": range(len(users))}
        pl.DataFrame(table).write_parquet(folder / "interactions.parquet")
        ids = list(items)
        pl.DataFrame({"item_id": ids, "title": [f"item {item}" for item in ids]}).write_parquet(
            folder / "items.parquet"
        )
        return folder

    return write
