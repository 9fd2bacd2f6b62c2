"""The protocol every recipe is scored by, so that their numbers can be compared."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from fuserec.models.retriever import Retriever
from fuserec.train.metrics import Ranking, rank_catalogue, rank_scores, summarize
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import Split

PROTOCOL: Final = "time-ordered leave-one-out, whole catalogue, seen items excluded"
K: Final = 10
USER_CHUNK: Final = 1024


def evaluate(model: Retriever, split: Split, histories: Ragged, targets: IntArray) -> dict[str, float]:
    """Score the evaluated users of a split.

    Args:
        model: dropout is off during the call.
        split: whose `evaluated` users are meant.
        histories: (E rows) item rows that the user tower reads and that are taken out of the ranking.
        targets: (E,) item rows.
    """
    return summarize(rank_users(model, split.evaluated + 1, histories, targets, K), K)


def popularity_baseline(split: Split) -> dict[str, float]:
    """Score the test items of a split where everybody is shown the items that most interactions to learn from are with.

    Of items equally popular the one with the lower id comes first.
    """
    counts = np.bincount(split.train.values - 1, minlength=split.item_ids.size)
    scores = torch.empty(counts.size, dtype=torch.float64)
    scores[torch.from_numpy(np.argsort(-counts, kind="stable"))] = torch.arange(counts.size, 0, -1).double()
    ranking = rank_scores(
        lambda users: scores.repeat(len(range(*users.indices(len(split.test_targets)))), 1),
        split.test_histories,
        torch.from_numpy(split.test_targets),
        K,
    )
    return summarize(ranking, K)


@torch.no_grad()
def rank_users(model: Retriever, users: IntArray, histories: Ragged, targets: IntArray, k: int) -> Ranking:
    """Rank the whole catalogue, but for the items of their history, for each of E users.

    Args:
        model: dropout is off during the call.
        users: (E,) user rows, 0 for an unknown user.
        histories: (E rows) item rows.
        targets: (E,) item rows.
        k: length of the lists kept.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    user = torch.from_numpy(users).to(device)
    padded = torch.from_numpy(histories.left_padded(np.arange(len(histories)), model.config.max_history)).to(device)
    vectors = [
        model.user_tower(*chunk)
        for chunk in zip(torch.split(user, USER_CHUNK), torch.split(padded, USER_CHUNK), strict=True)
    ]
    items = model.item_vectors()
    model.train(was_training)
    return rank_catalogue(torch.cat(vectors).cpu(), items.cpu(), histories, torch.from_numpy(targets), k)
