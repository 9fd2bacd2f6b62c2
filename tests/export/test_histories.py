"""Some users calibrate, all others judge, and they see the networks as callers do."""

import numpy as np
import polars as pl
import pytest

from fuserec.export.histories import MADE_UP, held_out, split_users, user_inputs
from fuserec.export.judging import NOBODY

ITEMS = pl.DataFrame({"item_id": [10, 20, 30]})
ALL = np.arange(20)


def users(count: int) -> pl.DataFrame:
    return pl.DataFrame({"user_id": list(range(count)), "history": [[10, 30, 20, 10, 30, 20, 30]] * count})


def test_nobody_calibrates_and_judges() -> None:
    calibrating, judging = split_users(users(20), calibration_users=5)
    assert len(calibrating) == 5
    assert sorted((*calibrating, *judging)) == list(range(20))


def test_at_most_half_of_the_users_calibrate() -> None:
    calibrating, judging = split_users(users(20), calibration_users=256)
    assert (len(calibrating), len(judging)) == (10, 10)


def test_one_user_serves_both() -> None:
    calibrating, judging = split_users(users(1), calibration_users=256)
    assert calibrating.tolist() == judging.tolist() == [0]


def test_ids_become_rows_newest_last() -> None:
    calibration = user_inputs(users(20), ITEMS, np.array([3]), max_history=4)
    assert calibration.items.tolist()[0] == [1, 3, 2, 3], "the last four of 10 30 20 10 30 20 30, as rows from 1"
    assert calibration.users.tolist()[0] == 4


def test_every_user_also_comes_unknown_and_with_a_short_history() -> None:
    """A graph that was calibrated by whole histories alone erred tenfold on those of one item."""
    lines = np.array([3, 4, 5, 6, 7])
    calibration = user_inputs(users(20), ITEMS, lines, max_history=9)
    known, unknown = (lines + 1).tolist(), [0] * 5
    assert calibration.users.tolist() == known + unknown + known + unknown
    lengths = (calibration.items > 0).sum(axis=1).tolist()
    assert lengths == [7] * 10 + [1, 2, 4, 7, 1] * 2, "7 of 8, as there are no more"
    assert calibration.items[11].tolist() == [0] * 7 + [2, 3], "not the last two"


@pytest.mark.parametrize(("max_history", "lengths"), [(1, [1, 1]), (2, [1, 1]), (3, [1, 2]), (4, [1, 2])])
def test_short_histories_fit_the_shortest_limits(max_history: int, lengths: list[int]) -> None:
    calibration = user_inputs(users(20), ITEMS, np.array([3, 4]), max_history)
    assert (calibration.items[4:6] > 0).sum(axis=1).tolist() == lengths


def test_the_last_item_is_held_out() -> None:
    asked = held_out(users(20), ITEMS, np.array([3]), max_history=4)
    assert asked.known
    assert asked.histories.items.tolist() == [[2, 1, 3, 2]], "rows of 20 10 30 20"
    assert asked.seen[0].tolist() == [10, 30, 20, 10, 30, 20]
    assert asked.targets.tolist() == [30]


def test_users_of_one_item_are_not_asked_about() -> None:
    few = pl.DataFrame({"user_id": [1, 2], "history": [[10], [10, 20]]})
    asked = held_out(few, ITEMS, np.array([0, 1]), max_history=4)
    assert asked.histories.users.tolist() == [2]


def test_without_users_histories_are_made_up_and_nothing_is_right() -> None:
    asked = held_out(users(0), ITEMS, np.array([], dtype=np.int64), max_history=4)
    assert not asked.known
    assert len(asked.targets) == MADE_UP and (asked.targets == NOBODY).all()
