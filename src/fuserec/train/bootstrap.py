"""How far a mean over users may be from what other users would have given: the percentile bootstrap (Efron 1979).

Users are drawn with replacement, as many as there are, and the mean is taken again; the middle 95 % of many such means
are the interval. A fixed seed makes the same users give the same interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES: Final = 1_000
CONFIDENCE: Final = 0.95
SEED: Final = 0

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and the bounds of its interval."""

    value: float
    low: float
    high: float


def estimate_means(values: FloatArray, *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> list[Estimate]:
    """Return mean and interval of each column of (n, m) values; a row is a user, drawn whole.

    For a paired comparison of two systems, let the values be the differences of what each user got.

    Raises:
        ValueError: if there are no rows.
    """
    means = resampled_means(values, n_resamples=n_resamples, seed=seed)
    return [_estimate(float(column.mean()), drawn) for column, drawn in zip(values.T, means.T, strict=True)]


def estimate_gap(above: FloatArray, below: FloatArray, *, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> Estimate:
    """Return by how much the mean of one group (n,) exceeds that of another (m,), users drawn within each group."""
    drawn = (
        resampled_means(above[:, None], n_resamples=n_resamples, seed=seed)
        - resampled_means(below[:, None], n_resamples=n_resamples, seed=seed + 1)
    )[:, 0]
    return _estimate(float(above.mean() - below.mean()), drawn)


def resampled_means(values: FloatArray, *, n_resamples: int, seed: int) -> FloatArray:
    """Return the means of the columns of (n, m) values in each resample of the rows: (n_resamples, m)."""
    n = len(values)
    if n == 0:
        raise ValueError("no rows to draw from; expected at least one")
    generator = np.random.default_rng(seed)
    means = np.empty((n_resamples, values.shape[1]))
    for resample in means:  # one at a time: all draws at once would take n_resamples * n numbers
        times_drawn = np.bincount(generator.integers(0, n, n), minlength=n)
        resample[:] = times_drawn @ values / n
    return means


def _estimate(value: float, drawn: FloatArray) -> Estimate:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (outside, 1 - outside))
    return Estimate(value, float(low), float(high))
