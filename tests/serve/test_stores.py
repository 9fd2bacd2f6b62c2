"""Ids become rows and back, for ids of any size and in any order."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.serve.popularity import Popularity
from fuserec.serve.stores import IdMap, UserStore


def test_rows_of_known_and_unknown_ids() -> None:
    ids = np.array([30, 10, 2**62, 20])
    assert IdMap(ids).rows(np.array([10, 20, 30, 2**62, 11, -1, 2**63 - 1])).tolist() == [1, 3, 0, 2, -1, -1, -1]


def test_no_ids_have_no_rows() -> None:
    assert IdMap(np.array([5])).rows(np.empty(0, np.int64)).tolist() == []


def test_empty_map_knows_nothing() -> None:
    assert IdMap(np.empty(0, np.int64)).rows(np.array([1, 2])).tolist() == [-1, -1]


def test_user_store_reads_histories(tmp_path: Path) -> None:
    table = pl.DataFrame({"user_id": [9, 4, 7], "history": [[1, 2], [], [3]]}, schema_overrides={"user_id": pl.Int64})
    table.write_parquet(tmp_path / "users.parquet")
    store = UserStore.load(tmp_path / "users.parquet")
    assert store.rows(np.array([4, 9, 5])).tolist() == [1, 0, -1]
    assert [store.items[store.place(row)].tolist() for row in (0, 1, 2, -1)] == [[1, 2], [], [3], []]


@pytest.mark.parametrize(
    ("k", "excluded", "expected"),
    [
        pytest.param(2, [], [7, 5], id="most popular first, ties by id"),
        pytest.param(2, [7, 7, 99], [5, 9], id="excluded, repeated and unknown"),
        pytest.param(6, [5], [7, 9, 3, -1, -1, -1], id="k beyond what is left"),
        pytest.param(1, [3, 5, 7, 9], [-1], id="everything excluded"),
    ],
)
def test_popularity(k: int, excluded: list[int], expected: list[int]) -> None:
    popularity = Popularity(np.array([3, 5, 7, 9]), np.array([1, 3, 5, 3]))
    ids, scores, orders = popularity.top(k, np.array(excluded, dtype=np.int64))
    assert ids.tolist() == expected
    assert (np.isneginf(scores) == (ids == -1)).all()
    assert (np.diff(scores[ids >= 0]) <= 0).all()
    assert (np.diff(orders[ids >= 0]) < 0).all() and (np.isneginf(orders) == (ids == -1)).all()
    if ids[0] == 7:
        assert scores[0] == pytest.approx(5 / 12)
