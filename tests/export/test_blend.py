"""The weight of a ranker is what its order is worth."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.export.blend import choose_weight, ndcg, target_ranks

U, C = 50, 40


def scored(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(U, C)).astype(np.float32), rng.integers(0, C, U)


def test_a_ranker_that_knows_gets_all_the_weight() -> None:
    retrieval, target = scored(0)
    rank = np.zeros((U, C), np.float32)
    rank[np.arange(U), target] = 1.0
    blend = choose_weight(retrieval, rank, target)
    assert blend.ndcg_after == 1.0
    assert blend.weight > 0.3
    assert blend.ndcg_before == pytest.approx(ndcg(target_ranks(retrieval, target)).mean())


def test_a_ranker_that_is_wrong_gets_none() -> None:
    retrieval, _ = scored(1)
    target = retrieval.argmax(axis=1)
    blend = choose_weight(retrieval, -retrieval, target)
    assert (blend.weight, blend.ndcg_before, blend.ndcg_after) == (0.0, 1.0, 1.0)


def test_of_equal_weights_the_smallest() -> None:
    retrieval, target = scored(2)
    assert choose_weight(retrieval, retrieval, target).weight == 0.0


def test_targets_that_are_no_candidates_count_as_missed() -> None:
    retrieval, _ = scored(3)
    blend = choose_weight(retrieval, retrieval, np.full(U, -1))
    assert (blend.weight, blend.ndcg_before, blend.ndcg_after) == (0.0, 0.0, 0.0)


def test_ranks_by_hand() -> None:
    scores = np.float32([[3, 1, 2], [1, 1, 0], [5, 4, -np.inf], [5, 4, -np.inf]])
    assert target_ranks(scores, np.array([2, 1, -1, 2])).tolist() == [2, 2, 4, 4]
    np.testing.assert_allclose(ndcg(np.array([1, 3, 10, 11])), [1.0, 0.5, 1 / np.log2(11), 0.0])


@pytest.mark.parametrize("target", [np.zeros(U + 1, np.int64), np.zeros((U, 1), np.int64)])
def test_shapes_that_do_not_fit_are_refused(target: np.ndarray) -> None:
    with pytest.raises(ValueError, match="target has shape"):
        choose_weight(*(scored(4)[0],) * 2, target)
