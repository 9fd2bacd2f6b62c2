"""Sampling probabilities and consumed pairs against their plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fuserec.train.negatives import consumption_keys, is_consumed, log_sampling_probability
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
