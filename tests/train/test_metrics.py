"""Ranks and metrics against torchmetrics and a sort, with seen items taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from fuserec.train.metrics import Ranking, coverage, hit_rate, mrr, ndcg, rank_catalogue, summarize
from fuserec.train.ragged import Ragged

N_USERS, N_ITEMS, DIM = 37, 50, 4


def random_case() -> tuple[torch.Tensor, torch.Tensor, Ragged, torch.Tensor]:
    generator = np.random.default_rng(0)
    orders = [generator.permutation(N_ITEMS) + 1 for _ in range(N_USERS)]
    seen = Ragged.from_rows(order[1 : 1 + n % 9].tolist() for n, order in enumerate(orders))
    users = torch.from_numpy(generator.normal(size=(N_USERS, DIM))).float()
    items = torch.from_numpy(generator.normal(size=(N_ITEMS, DIM))).float()
    return users, items, seen, torch.tensor([int(order[0]) for order in orders])


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("chunk", [1, 7, 1024])
def test_agrees_with_torchmetrics(k: int, chunk: int) -> None:
    users, items, seen, targets = random_case()
    ranking = rank_catalogue(users, items, seen, targets, k, chunk=chunk)
    allowed = torch.ones(N_USERS, N_ITEMS, dtype=torch.bool)
    allowed[torch.from_numpy(seen.row_of_value), torch.from_numpy(seen.values - 1)] = False
    relevant = torch.zeros_like(allowed).scatter_(1, targets[:, None] - 1, True)
    index = torch.arange(N_USERS)[:, None].expand_as(allowed)
    inputs = ((users @ items.T)[allowed], relevant[allowed], index[allowed])
    for ours, theirs in (
        (hit_rate, RetrievalHitRate(top_k=k)),
        (ndcg, RetrievalNormalizedDCG(top_k=k)),
        (mrr, RetrievalMRR(top_k=k)),
    ):
        expected = float(theirs(inputs[0], inputs[1], indexes=inputs[2]))
        assert ours(ranking.ranks, k) == pytest.approx(expected, abs=1e-6), ours.__name__


def test_lists_hold_the_best_unseen_items() -> None:
    users, items, seen, targets = random_case()
    ranking = rank_catalogue(users, items, seen, targets, 5)
    scores = (users @ items.T).numpy()
    for user in range(N_USERS):
        unseen = [row for row in np.argsort(-scores[user]) if row + 1 not in seen[user]]
        assert ranking.top[user].tolist() == unseen[:5]
        assert int(ranking.ranks[user]) == unseen.index(int(targets[user]) - 1) + 1


def test_equal_scores_count_against_the_target() -> None:
    ranking = rank_catalogue(torch.zeros(1, 2), torch.zeros(9, 2), Ragged.from_rows([[1, 2]]), torch.tensor([5]), 3)
    assert ranking.ranks.tolist() == [7]


def test_a_repeated_item_is_ranked_though_seen() -> None:
    items = torch.tensor([[3.0], [2.0], [1.0]])
    ranking = rank_catalogue(torch.ones(1, 1), items, Ragged.from_rows([[1, 2]]), torch.tensor([2]), 3)
    assert ranking.ranks.tolist() == [1]
    assert ranking.top.tolist() == [[1, 2, -1]]


def test_scores_that_are_not_numbers_are_refused() -> None:
    users = torch.full((1, 2), torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        rank_catalogue(users, torch.zeros(3, 2), Ragged.from_rows([[]]), torch.tensor([1]), 2)


def test_known_values() -> None:
    ranks = torch.tensor([1, 2, 10, 11])
    assert hit_rate(ranks, 10) == 0.75
    assert mrr(ranks, 10) == pytest.approx((1 + 1 / 2 + 1 / 10) / 4)
    assert ndcg(ranks, 10) == pytest.approx((1 + 1 / np.log2(3) + 1 / np.log2(11)) / 4)
    assert coverage(torch.tensor([[0, 1], [1, -1]]), 4) == 0.5


def test_summary_keys() -> None:
    ranking = Ranking(ranks=torch.tensor([1]), top=torch.tensor([[0, 1, 2]]), n_items=4)
    assert summarize(ranking, 2) == {"hr@2": 1.0, "ndcg@2": 1.0, "mrr@2": 1.0, "coverage@2": 0.5}
