"""The report holds the metrics by their definitions, and compares groups and recommenders."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from fuserec.contract import NO_ID
from fuserec.train.exposure import Popularity
from fuserec.train.questions import Answers, Questions
from fuserec.train.ragged import Ragged
from fuserec.train.report import SMALL_GROUP, differences, metrics_of_users, report

N_ITEMS = 20
POPULARITY = Popularity(np.arange(N_ITEMS), np.arange(N_ITEMS)[::-1].copy())


def asked(n_users: int) -> Questions:
    """Every user had item 0, and item 5 is to be found."""
    histories = Ragged.from_lengths(np.zeros(n_users, dtype=np.int64), np.ones(n_users, dtype=np.int64))
    return Questions(np.arange(n_users), histories, np.full(n_users, 5))


def answered(places: list[int]) -> Answers:
    """Lists of 4 in which item 5 comes at a place, 0 is first; or not at all where it is 4."""
    top = np.tile(np.array([1, 2, 3, 4]), (len(places), 1))
    for line, place in zip(top, places, strict=True):
        line[place : place + 1] = 5
    return Answers.of_lists(top, np.full(len(places), 5), ignored=0)


def test_metrics_by_their_definitions() -> None:
    metrics = metrics_of_users(np.array([1, 3, 4]), k=3)
    expected = {"hr": [1, 1, 0], "recall": [1, 1, 0], "ndcg": [1, 0.5, 0], "mrr": [1, 1 / 3, 0]}
    expected |= {"precision": [1 / 3, 1 / 3, 0], "f1": [0.5, 0.5, 0]}
    assert metrics.keys() == {f"{name}@3" for name in expected}
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[f"{name}@3"], values, err_msg=name)
    f1, precision, recall = (metrics[f"{name}@3"][:2] for name in ("f1", "precision", "recall"))
    np.testing.assert_allclose(f1, 2 * precision * recall / (precision + recall))


def test_ranks_read_off_lists() -> None:
    top = np.array([[7, 8, 9], [9, 7, NO_ID], [8, NO_ID, NO_ID]])
    answers = Answers.of_lists(top, np.array([7, 7, 7]), ignored=0)
    assert answers.ranks.tolist() == [1, 2, 4]


def test_shorter_lists_are_the_heads_of_longer_ones() -> None:
    document = report(asked(4), answered([0, 1, 3, 4]), POPULARITY, [4, 2, 1], None)
    metrics = document["metrics"]
    assert [metrics[f"hr@{k}"]["value"] for k in (1, 2, 4)] == [0.25, 0.5, 0.75]
    assert [metrics[f"coverage@{k}"]["value"] for k in (1, 2, 4)] == [2 / 20, 3 / 20, 5 / 20]
    assert metrics["hr@2"]["low"] < 0.5 < metrics["hr@2"]["high"]
    assert document["exposure"]["k"] == 4
    json.dumps(document, allow_nan=False)


def test_groups_and_the_gap_between_them() -> None:
    n = SMALL_GROUP + 10
    users = pl.DataFrame({"user_id": np.arange(2 * n + 3), "side": ["left"] * n + ["right"] * n + ["top"] * 3})
    places = [0] * (n // 2) + [4] * (n - n // 2) + [4] * n + [0] * 3
    document = report(asked(2 * n + 3), answered(places), POPULARITY, [4], users)
    activity, side = document["user_groups"]
    assert activity["by"] == "activity" and activity["gap"] == {"ndcg@4": None, "hr@4": None}
    assert [(group["group"], group["n_users"], group["small"]) for group in side["groups"]] == [
        ("left", n, False),
        ("right", n, False),
        ("top", 3, True),
    ]
    assert [group["hr@4"]["value"] for group in side["groups"]] == [0.5, 0.0, 1.0]
    gap = side["gap"]["hr@4"]
    assert (gap["best"], gap["worst"], gap["value"]) == ("left", "right", 0.5), "three users are no best group"
    assert 0.2 < gap["low"] < 0.5 < gap["high"] < 0.8


def test_paired_difference_is_narrower_than_that_of_strangers() -> None:
    places = np.random.default_rng(0).integers(0, 5, 200)
    better = np.where(np.arange(200) % 10 == 0, 0, places)
    a, b = answered(better.tolist()), answered(places.tolist())
    difference = differences(a, b, POPULARITY, [4])["hr@4"]
    alone = report(asked(200), b, POPULARITY, [4], None)["metrics"]["hr@4"]
    assert difference["value"] == pytest.approx((a.ranks <= 4).mean() - (b.ranks <= 4).mean())
    assert difference["high"] - difference["low"] < 0.6 * (alone["high"] - alone["low"])
    same = differences(a, a, POPULARITY, [4])["ndcg@4"]
    assert (same["value"], same["low"], same["high"]) == (0.0, 0.0, 0.0)


def test_repeats_and_samples() -> None:
    questions = Questions(
        np.arange(3), Ragged.from_lengths(np.array([5, 5, 1, 2]), np.array([2, 1, 1])), np.array([5, 1, 3])
    )
    assert questions.n_repeats == 2
    assert questions.sample(3, seed=0) is questions
    drawn = questions.sample(2, seed=1)
    assert len(drawn) == 2 and drawn.user_ids.tolist() == sorted(drawn.user_ids.tolist())
    for row, user in enumerate(drawn.user_ids):
        assert drawn.targets[row] == questions.targets[user]
        np.testing.assert_array_equal(drawn.histories[row], questions.histories[user])
