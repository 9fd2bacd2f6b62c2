"""InfoNCE against the formula in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fuserec.train.losses import info_nce


def slow_info_nce(
    users: Tensor, items: Tensor, log_q: Tensor, item_ids: Tensor, temperature: float, not_negative: Tensor
) -> float:
    total = 0.0
    for i in range(len(users)):
        terms = {}
        for j in range(len(users)):
            if j == i or (item_ids[j] != item_ids[i] and not not_negative[i, j]):
                terms[j] = math.exp(float(users[i] @ items[j]) / temperature - float(log_q[j]))
        total -= math.log(terms[i] / sum(terms.values()))
    return total / len(users)


def random_batch(batch: int, n_items: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    normalize = torch.nn.functional.normalize
    users = normalize(torch.randn(batch, 8, generator=generator, dtype=torch.float64))
    items = normalize(torch.randn(batch, 8, generator=generator, dtype=torch.float64))
    ids = torch.randint(n_items, (batch,), generator=generator)
    return users, items, torch.rand(n_items, generator=generator, dtype=torch.float64).log()[ids], ids


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
@pytest.mark.parametrize("n_items", [1, 5, 1000], ids=["one-item", "many-accidental-hits", "few-accidental-hits"])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_matches_the_loops(batch: int, n_items: int, temperature: float) -> None:
    arguments = random_batch(batch, n_items)
    nothing = torch.zeros(batch, batch, dtype=torch.bool)
    expected = slow_info_nce(*arguments, temperature, nothing)
    assert float(info_nce(*arguments, temperature)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share", [0.3, 1.0], ids=["some", "all"])
def test_marked_items_are_no_negatives(share: float) -> None:
    arguments = random_batch(17, 40)
    # The diagonal is marked here and there, too: a positive always counts.
    mark = torch.rand(17, 17, generator=torch.Generator().manual_seed(0)) < share
    expected = slow_info_nce(*arguments, 0.1, mark)
    assert float(info_nce(*arguments, 0.1, not_negative=mark)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_correction_undoes_popularity_sampling() -> None:
    """With items drawn by q, the corrected gradient is close to that of the softmax over the whole catalogue."""
    generator = torch.Generator().manual_seed(0)
    n_items, draws = 6, 200_000
    q = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64)
    scores = torch.randn(n_items, generator=generator, dtype=torch.float64)
    drawn = torch.multinomial(q, draws, replacement=True, generator=generator)
    estimate = (scores[drawn] - q.log()[drawn]).exp().mean()
    torch.testing.assert_close(estimate, scores.exp().sum(), rtol=0.02, atol=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"item_vectors": torch.zeros(3, 5)}, "expected \\(B, D\\) twice", id="items-shape"),
        pytest.param({"log_q": torch.zeros(4)}, "expected \\(3,\\)", id="log_q-shape"),
        pytest.param({"not_negative": torch.zeros(3, 4)}, "expected \\(3, 3\\)", id="not_negative-shape"),
        pytest.param({"temperature": 0.0}, "temperature is 0.0", id="temperature"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {"user_vectors": torch.zeros(3, 4), "item_vectors": torch.zeros(3, 4), "log_q": torch.zeros(3),
            "item_ids": torch.arange(3), "temperature": 0.1}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        info_nce(**(good | change))
