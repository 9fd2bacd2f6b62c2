"""The order of packed keys is the total order, and a key gives back its row and score."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.kernels.search._numba_score import pack_bits
from fuserec.kernels.search.keys import EMPTY, MAX_ROWS, unpack

# From the best to the worst; the rows of equal scores ascend.
SCORES = [np.inf, 3e38, 1.0, 1.0, 1e-45, 0.0, -0.0, -1e-45, -1.0, -3e38, -np.inf]
ROWS = [5, MAX_ROWS - 1, 0, MAX_ROWS - 1, 3, 2, 4, 1, 0, 7, MAX_ROWS - 1]


@pytest.fixture
def keys() -> np.ndarray:
    bits = np.array(SCORES, np.float32).view(np.int32)
    return np.array([pack_bits(bit, row) for bit, row in zip(bits, ROWS, strict=True)], np.int64)


def test_keys_fall_in_the_total_order(keys: np.ndarray) -> None:
    assert (np.diff(keys.astype(object)) < 0).all()
    assert keys[-1] > EMPTY


def test_a_key_gives_back_its_row_and_score(keys: np.ndarray) -> None:
    rows, scores = unpack(np.append(keys, EMPTY)[None])
    assert rows[0].tolist() == [*ROWS, -1]
    assert scores[0].tolist() == [*np.array(SCORES, np.float32).tolist(), -np.inf]
    assert scores.dtype == np.float32
    assert not np.signbit(scores[0, 6])
