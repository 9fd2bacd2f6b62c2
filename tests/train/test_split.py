"""Leave-one-out: last is the test, second last the validation, ties in the order of the file."""

from __future__ import annotations

import logging

import polars as pl
import pytest

from fuserec.train.data import DataSet
from fuserec.train.split import Split, leave_one_out


def make_split(rows: list[tuple[int, int, int]]) -> Split:
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    item_ids = sorted({item for _, item, _ in rows})
    items = pl.DataFrame({"item_id": item_ids, "title": [str(item) for item in item_ids]})
    return leave_one_out(DataSet(interactions, items))


def test_orders_by_time_and_numbers_rows_from_one() -> None:
    split = make_split([(7, 40, 3), (7, 10, 1), (2, 30, 9), (2, 20, 8), (7, 20, 2), (2, 10, 7), (7, 30, 4)])
    assert split.user_ids.tolist() == [2, 7]
    assert split.item_ids.tolist() == [10, 20, 30, 40]
    assert split.full[1].tolist() == [1, 2, 4, 3]
    assert split.train[1].tolist() == [1, 2]
    assert split.validation_targets.tolist() == [2, 4]
    assert split.test_targets.tolist() == [3, 3]
    assert split.validation_histories[1].tolist() == [1, 2]
    assert split.test_histories[1].tolist() == [1, 2, 4]


def test_ties_keep_the_order_of_the_file() -> None:
    items = [5, 3, 9, 1, 7, 2, 8]
    split = make_split([(1, item, 100) for item in items] + [(0, item, 100) for item in reversed(items)])
    ids = split.item_ids
    assert [ids[row - 1] for row in split.full[1]] == items
    assert [ids[row - 1] for row in split.full[0]] == items[::-1]


def test_users_with_too_little_are_trained_on_and_not_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fuserec"):
        split = make_split([(1, 10, 1), (1, 20, 2), (2, 10, 1), (2, 20, 2), (2, 30, 3), (3, 10, 1)])
    assert split.evaluated.tolist() == [1]
    assert [split.train[user].tolist() for user in range(3)] == [[1, 2], [1], [1]]
    assert "2 of 3 users have fewer than 3 interactions" in caplog.text
