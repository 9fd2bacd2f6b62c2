"""The protocol every recipe is scored by, so that their numbers can be compared."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from fuserec.models.retriever import Retriever
from fuserec.train.metrics import rank_catalogue, summarize
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import Split

PROTOCOL: Final = "time-ordered leave-one-out, whole catalogue, seen items excluded"
K: Final = 10
USER_CHUNK: Final = 1024


@torch.no_grad()
def evaluate(model: Retriever, split: Split, histories: Ragged, targets: IntArray) -> dict[str, float]:
    """Score the evaluated users of a split.

    Args:
        model: dropout is off during the call.
        split: whose `evaluated` users are meant.
        histories: (E rows) item rows that the user tower reads and that are taken out of the ranking.
        targets: (E,) item rows.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    user = torch.from_numpy(split.evaluated + 1).to(device)
    padded = torch.from_numpy(histories.left_padded(np.arange(len(histories)), model.config.max_history)).to(device)
    vectors = [
        model.user_tower(*chunk)
        for chunk in zip(torch.split(user, USER_CHUNK), torch.split(padded, USER_CHUNK), strict=True)
    ]
    items = model.item_vectors()
    model.train(was_training)
    ranking = rank_catalogue(torch.cat(vectors).cpu(), items.cpu(), histories, torch.from_numpy(targets), K)
    return summarize(ranking, K)
