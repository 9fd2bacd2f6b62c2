"""Matrix factorization looks vectors up, and makes one for who it does not know."""

from __future__ import annotations

import pytest
import torch

from fuserec.models.matrix_factorization import MatrixFactorization, MatrixFactorizationConfig

CONFIG = MatrixFactorizationConfig(n_users=4, n_items=6, dim=3, max_history=5)


@pytest.fixture
def model() -> MatrixFactorization:
    torch.manual_seed(0)
    return MatrixFactorization(CONFIG)


def test_known_users_have_a_vector_of_their_own(model: MatrixFactorization) -> None:
    user, history = torch.tensor([1, 4]), torch.tensor([[0, 2, 3], [1, 1, 1]])
    assert torch.equal(model.user_tower(user, history), model.user_tower.user_embedding.weight[user])


def test_unknown_users_are_the_mean_of_what_they_consumed(model: MatrixFactorization) -> None:
    got = model.user_tower(torch.zeros(2, dtype=torch.int64), torch.tensor([[0, 2, 3], [0, 0, 0]]))
    vectors = model.item_vectors()
    assert torch.allclose(got[0], (vectors[1] + vectors[2]) / 2)
    assert got[1].tolist() == [0, 0, 0]


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="n_users is 0; expected at least 1"):
        MatrixFactorizationConfig(n_users=0, n_items=6)


def test_an_unknown_user_takes_item_biases_whole() -> None:
    module = MatrixFactorization(MatrixFactorizationConfig(n_users=1, n_items=3, dim=3, item_bias=True))
    with torch.no_grad():
        module.user_tower.item_embedding.weight[1:] = torch.tensor([[1.0, 2.0, 5.0], [3.0, 4.0, 7.0], [0.0, 0.0, 9.0]])
    history = torch.tensor([[0, 1, 2], [0, 0, 0]])
    vectors = module.user_tower(torch.tensor([0, 0]), history)
    assert torch.equal(vectors, torch.tensor([[2.0, 3.0, 1.0], [0.0, 0.0, 1.0]])), "the last column is not 1"
