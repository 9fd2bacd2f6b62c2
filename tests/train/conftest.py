"""A small synthetic data set in which the next item follows from the last one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.train.data import DataSet

N_ITEMS = 60
N_USERS = 80


@pytest.fixture(scope="session")
def cyclic() -> DataSet:
    """Users walk round a cycle of items from random starts; ids have gaps, items 0, 3, 6, ..."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 20, N_USERS)
    user = np.repeat(np.arange(N_USERS), lengths)
    step = np.arange(user.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    item = (np.repeat(generator.integers(0, N_ITEMS, N_USERS), lengths) + step) % N_ITEMS
    interactions = pl.DataFrame({"user_id": user * 5, "item_id": item * 3, "timestamp": 1000 + step})
    titles = [f"Part {n} of the story" for n in range(N_ITEMS)]
    items = pl.DataFrame(
        {
            "item_id": np.arange(N_ITEMS) * 3,
            "title": titles,
            "genres": [["a", "b"] if n % 2 else [] for n in range(N_ITEMS)],
            "year": [None if n % 7 == 0 else 1950 + n for n in range(N_ITEMS)],
        },
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
    )
    return DataSet(interactions, items)


@pytest.fixture(scope="session")
def data_folder(cyclic: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cyclic` as a data folder."""
    folder = tmp_path_factory.mktemp("data")
    cyclic.interactions.write_parquet(folder / "interactions.parquet")
    cyclic.items.write_parquet(folder / "items.parquet")
    return folder
