"""Intervals have the width that theory gives them, and are the same each time."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.train.bootstrap import estimate_gap, estimate_means, resampled_means


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (2_000, 1))
    [estimate] = estimate_means(values)
    half = 1.96 * values.std() / np.sqrt(2_000)
    assert estimate.value == values.mean()
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_columns_are_drawn_together() -> None:
    """A column and twice the column: each resample of one is half of the other's, so differences are paired."""
    column = np.random.default_rng(2).random(50)
    means = resampled_means(np.stack([column, 2 * column], axis=1), n_resamples=20, seed=0)
    np.testing.assert_allclose(2 * means[:, 0], means[:, 1])


def test_equal_values_have_no_width() -> None:
    [estimate] = estimate_means(np.full((7, 1), 0.25))
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_seed_decides() -> None:
    values = np.random.default_rng(3).random((40, 1))
    assert estimate_means(values) == estimate_means(values)
    assert estimate_means(values) != estimate_means(values, seed=1)


def test_gap_of_two_groups() -> None:
    generator = np.random.default_rng(4)
    above, below = generator.normal(1.0, 1.0, 500), generator.normal(0.0, 1.0, 300)
    estimate = estimate_gap(above, below)
    half = 1.96 * np.sqrt(above.var() / 500 + below.var() / 300)
    assert estimate.value == above.mean() - below.mean()
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.15)


def test_nobody_to_draw() -> None:
    with pytest.raises(ValueError, match="no rows"):
        estimate_means(np.empty((0, 2)))
