"""Users are grouped by activity and by what a table says of them."""

from __future__ import annotations

import numpy as np
import polars as pl

from fuserec.train.groups import MAX_GROUPS, by_activity, by_columns
from fuserec.train.questions import Questions
from fuserec.train.ragged import Ragged


def questions(*lengths: int) -> Questions:
    """Users 0, 10, 20, ... with histories of these lengths."""
    histories = Ragged.from_lengths(np.zeros(sum(lengths), dtype=np.int64), np.array(lengths))
    return Questions(10 * np.arange(len(lengths)), histories, np.zeros(len(lengths), dtype=np.int64))


def test_terciles_of_activity() -> None:
    grouping = by_activity(questions(9, 1, 5, 2, 8, 4))
    assert grouping.labels == ["1 to 2 items", "4 to 5 items", "8 to 9 items"]
    assert grouping.member.tolist() == [2, 0, 1, 0, 2, 1]


def test_equal_lengths_are_not_parted() -> None:
    assert by_activity(questions(3, 3, 3, 3)).labels == ["3 to 3 items"]
    grouping = by_activity(questions(1, 1, 1, 1, 1, 9))
    assert grouping.labels == ["1 to 1 items", "9 to 9 items"]
    assert grouping.member.tolist() == [0, 0, 0, 0, 0, 1]


def test_categorical_columns_only_and_the_unknown() -> None:
    users = pl.DataFrame(
        {"user_id": [20, 0, 99], "job": ["artist", None, "miner"], "age": [30, 40, 50], "member": [True, False, True]}
    )
    groupings, left_out = by_columns(questions(1, 1, 1), users)
    assert [grouping.by for grouping in groupings] == ["job", "member"]
    job, member = groupings
    assert [job.labels[place] for place in job.member] == ["unknown", "unknown", "artist"]
    assert [member.labels[place] for place in member.member] == ["false", "unknown", "true"]
    assert left_out == []


def test_columns_of_too_many_values_are_named() -> None:
    n_users = MAX_GROUPS + 1
    users = pl.DataFrame({"user_id": 10 * np.arange(n_users), "postcode": [f"P{n}" for n in range(n_users)]})
    assert by_columns(questions(*[1] * n_users), users) == ([], ["postcode"])


def test_no_table() -> None:
    assert by_columns(questions(1), None) == ([], [])
