"""Every loss against its formula in plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fuserec.train.losses import bpr, choice, info_nce, margin_ranking


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


def random_pairs(share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (7, 5), the column that was chosen, which others are negatives, and weights."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    own = torch.randint(5, (7,), generator=generator)
    is_negative = torch.rand(7, 5, generator=generator) < share
    return scores, own, is_negative.scatter(1, own[:, None], False), torch.rand(7, generator=generator).double()


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["no-negatives", "some", "all"])
def test_choice_matches_the_loops(share: float, weighted: bool) -> None:
    logits, own, is_negative, weight = random_pairs(share)
    total = 0.0
    for i in range(7):
        among = [j for j in range(5) if j == own[i] or is_negative[i, j]]
        probability = math.exp(logits[i, own[i]]) / sum(math.exp(logits[i, j]) for j in among)
        total -= (float(weight[i]) if weighted else 1.0) * math.log(probability)
    assert float(choice(logits, own, is_negative, weight if weighted else None)) == pytest.approx(total / 7, abs=1e-12)


PAIR_LOSSES = [
    pytest.param(bpr, (), lambda p, n: -math.log(1 / (1 + math.exp(n - p))), id="bpr"),
    pytest.param(margin_ranking, (0.7,), lambda p, n: max(0.0, 0.7 - p + n), id="margin"),
]


@pytest.mark.parametrize(("loss", "arguments", "formula"), PAIR_LOSSES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["no-negatives", "some", "all"])
def test_pair_losses_match_the_loops(
    loss: Any, arguments: tuple[float, ...], formula: Any, share: float, weighted: bool
) -> None:
    scores, own, is_negative, weight = random_pairs(share)
    positive = scores.gather(1, own[:, None])
    pairs = [(i, j) for i in range(7) for j in range(5) if is_negative[i, j]]
    losses = [
        formula(float(positive[i]), float(scores[i, j])) * (float(weight[i]) if weighted else 1.0) for i, j in pairs
    ]
    found = loss(positive, scores, is_negative, *arguments, weight if weighted else None)
    assert float(found) == pytest.approx(sum(losses) / max(1, len(pairs)), abs=1e-12)


def test_a_margin_that_is_kept_costs_nothing() -> None:
    """The sign: a positive above the negative by more than the margin is no loss, the other way round is."""
    above, below, both = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.ones(1, 1, dtype=torch.bool)
    assert float(margin_ranking(above, below, both, 0.3)) == 0.0
    assert float(margin_ranking(below, above, both, 0.3)) == pytest.approx(1.3)
