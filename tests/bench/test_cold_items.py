"""The bench of cold items: ties count evenly, and candidates are what is said."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.cold_items import by_order, interval


def test_a_target_without_ties_counts_by_its_rank() -> None:
    scores = np.arange(20.0)[None].repeat(3, axis=0)
    hits, gains = by_order(scores, np.array([19, 10, 9]))  # ranks 1, 10, 11
    assert hits.tolist() == [1, 1, 0]
    assert gains == pytest.approx([1, 1 / math.log2(11), 0])


def test_items_that_score_alike_count_as_their_average() -> None:
    hits, gains = by_order(np.zeros((1, 40)), np.array([7]))
    assert hits[0] == pytest.approx(10 / 40)
    assert gains[0] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / 40)
    scores = np.array([[2.0] * 9 + [1.0] * 4 + [-np.inf] * 5])  # places 10 to 13, of which one is within 10
    hits, gains = by_order(scores, np.array([9]))
    assert hits[0] == pytest.approx(1 / 4)
    assert gains[0] == pytest.approx(1 / math.log2(11) / 4)


def test_fewer_candidates_than_places_are_all_hits() -> None:
    hits, gains = by_order(np.array([[3.0, 2.0, 1.0]]), np.array([2]))
    assert hits[0] == 1
    assert gains[0] == pytest.approx(0.5)


def test_the_interval_holds_the_mean() -> None:
    values = np.random.default_rng(1).random(500)
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(500), rel=0.2)
