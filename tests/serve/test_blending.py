"""Two scores of the same candidates become one order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.serve.blending import blend

RETRIEVAL = np.float32([[0.9, 0.5, 0.1, -np.inf], [3.0, 1.0, 2.0, 0.0]])
RANK = np.float32([[-5.0, 0.0, 5.0, 99.0], [10.0, 20.0, 30.0, 40.0]])


def test_the_ends_are_one_score_alone() -> None:
    np.testing.assert_array_equal(np.argsort(-blend(RETRIEVAL, RANK, 0.0)), np.argsort(-RETRIEVAL))
    assert np.argsort(-blend(RETRIEVAL, RANK, 1.0)).tolist() == [[2, 1, 0, 3], [3, 2, 1, 0]]


def test_half_and_half_of_opposites_is_nothing() -> None:
    np.testing.assert_allclose(blend(RETRIEVAL, RANK, 0.5)[0, :3], 0.0, atol=1e-6)


def test_what_is_no_candidate_stays_none_and_moves_nothing() -> None:
    short = blend(RETRIEVAL[:1, :3], RANK[:1, :3], 0.3)
    for filler in (99.0, np.nan, np.inf, -np.inf):
        rank = RANK[:1].copy()
        rank[0, 3] = filler
        came = blend(RETRIEVAL[:1], rank, 0.3)
        assert came[0, 3] == -np.inf
        np.testing.assert_array_equal(came[:, :3], short)


def test_scores_that_are_all_alike_do_not_decide() -> None:
    flat = np.full((1, 3), 0.1, np.float32)
    np.testing.assert_array_equal(blend(RETRIEVAL[:1, :3], flat, 1.0), np.zeros((1, 3)))
    np.testing.assert_array_equal(blend(flat, RANK[:1, :3], 0.0), np.zeros((1, 3)))


def test_a_user_without_candidates_and_no_user_at_all() -> None:
    assert (blend(np.full((1, 2), -np.inf, np.float32), np.zeros((1, 2), np.float32), 0.5) == -np.inf).all()
    assert blend(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), 0.5).shape == (0, 2)


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), weight=st.floats(0, 1))
def test_neither_origin_nor_unit_of_a_score_matters(scale: float, shift: float, weight: float) -> None:
    moved = (RANK * scale + shift).astype(np.float32)
    np.testing.assert_allclose(blend(RETRIEVAL, moved, weight), blend(RETRIEVAL, RANK, weight), atol=1e-3)


@pytest.mark.parametrize(
    ("rank", "weight", "message"),
    [
        (RANK[:1], 0.5, r"shapes \(2, 4\) and \(1, 4\)"),
        (RANK, 1.5, "weight is 1.5"),
        (np.full_like(RANK, np.nan), 0.5, "rank holds NaN"),
    ],
)
def test_what_makes_no_sense_is_refused(rank: np.ndarray, weight: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blend(RETRIEVAL, rank, weight)
