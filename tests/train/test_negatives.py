"""Draws, their probabilities and consumed pairs against their plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fuserec.train.negatives import (
    KINDS,
    consumption_keys,
    draw,
    is_consumed,
    log_draw_probability,
    log_sampling_probability,
    long_tail_weights,
)
from fuserec.train.ragged import Ragged


def test_sampling_probability_sums_to_one_and_follows_the_counts() -> None:
    log_q = log_sampling_probability(np.array([1, 1, 1, 2]), n_items=3)
    assert float(log_q.exp().sum()) == pytest.approx(1.0)
    assert log_q[1] > log_q[2] > log_q[3]


def test_consumed_pairs_are_found_and_no_others() -> None:
    rows = [[3, 1, 3], [], [2, 5]]
    keys = consumption_keys(Ragged.from_rows(rows), n_items=5)
    users, items = torch.tensor([3, 1, 2, 3]), torch.arange(1, 6)
    expected = [[item in rows[user - 1] for item in items.tolist()] for user in users.tolist()]
    assert is_consumed(keys, users, items, n_items=5).tolist() == expected


LOG_Q = log_sampling_probability(np.repeat([1, 2, 3, 4], [60, 25, 10, 2]), n_items=6)


@pytest.mark.parametrize("kind", ["uniform", "popularity", "hard", "mixed"])
def test_draws_follow_the_probability_that_is_stated(kind: str) -> None:
    torch.manual_seed(0)
    drawn = draw(kind, 60_000, LOG_Q)
    assert int(drawn.min()) == 1 and int(drawn.max()) == 6
    # What "mixed" draws is its uniform part.
    stated = log_draw_probability("uniform" if kind == "mixed" else kind, torch.arange(1, 7), LOG_Q, 0, 60_000).exp()
    expected = 60_000 * stated / stated.sum()
    found = torch.bincount(drawn, minlength=7)[1:]
    # 99.9 % of chi-square with 5 degrees of freedom.
    assert float(((found - expected) ** 2 / expected).sum()) < 20.5


def test_kinds_that_do_not_draw() -> None:
    assert draw("in-batch", 50, LOG_Q).tolist() == []
    assert draw("catalogue", 2, LOG_Q).tolist() == [1, 2, 3, 4, 5, 6]


def test_mixed_candidates_follow_the_mixture() -> None:
    """A batch of 30 items by popularity with 10 uniform ones beside them."""
    rows = torch.arange(1, 7)
    found = log_draw_probability("mixed", rows, LOG_Q, 30, 10).exp()
    torch.testing.assert_close(found, 0.75 * LOG_Q[rows].exp() + 0.25 / 6)


def test_every_kind_states_a_probability_below_one() -> None:
    for kind in KINDS:
        stated = log_draw_probability(kind, torch.tensor([1, 6, 6]), LOG_Q, 30, 10)
        assert stated.shape == (3,) and bool((stated < 0).all()), kind


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_long_tail_weights(exponent: float) -> None:
    rows = np.array([1, 1, 1, 1, 2, 4])
    weights = long_tail_weights(rows, 4, exponent)
    assert float(weights[rows].mean()) == pytest.approx(1.0)
    assert float(weights[2] / weights[1]) == pytest.approx(4.0**exponent)
    assert float(weights[3]) == 0.0
