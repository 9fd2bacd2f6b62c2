"""Calibration and check see real histories of different users, as the user tower is called."""

import numpy as np
import polars as pl

from fuserec.export.histories import SHORT, split_histories

ITEMS = pl.DataFrame({"item_id": [10, 20, 30]})


def users(count: int) -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(range(count)), "history": [[10, 30, 20, 10, 30, 20, 30]] * count})


def test_sets_have_different_users() -> None:
    calibration, check = split_histories(users(20), ITEMS, max_history=4, calibration_users=5)
    assert len(np.unique(calibration.users[calibration.users > 0])) == 5
    assert not set(calibration.users[calibration.users > 0]) & set(check.users[check.users > 0])


def test_ids_become_rows_newest_last() -> None:
    calibration, _ = split_histories(users(20), ITEMS, max_history=4, calibration_users=1)
    assert calibration.items.tolist()[0] == [1, 3, 2, 3], "the last four of 10 30 20 10 30 20 30, as rows from 1"


def test_every_user_also_comes_unknown_and_with_a_short_history() -> None:
    calibration, _ = split_histories(users(20), ITEMS, max_history=9, calibration_users=2)
    assert (calibration.users == 0).sum() == 2
    assert sorted((calibration.items > 0).sum(axis=1).tolist()) == [SHORT, SHORT, 7, 7, 7, 7]


def test_one_user_serves_both() -> None:
    calibration, check = split_histories(users(1), ITEMS, max_history=4, calibration_users=256)
    assert len(calibration.users) == len(check.users) == 3
