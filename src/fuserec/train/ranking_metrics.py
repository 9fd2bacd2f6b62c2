"""What a ranker is worth: as an order of the whole catalogue, as a judge of clicks, and as a guess of ratings."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.classification import binary_accuracy, binary_auroc

from fuserec.models.ranker import HEADS, Ranker
from fuserec.models.retriever import PADDING
from fuserec.train.evaluation import K
from fuserec.train.metrics import Ranking, rank_scores, summarize
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.ranking_data import FloatArray, Ratings, unseen_items
from fuserec.train.split import Split

N_UNSEEN: Final = 10
UNSEEN_SEED: Final = 0
CLICK_PROTOCOL: Final = (
    f"each evaluated user's target against {N_UNSEEN} items drawn uniformly (seed {UNSEEN_SEED}), without those the "
    "user ever consumed; both labels weigh the same, so that guessing gives auc 0.5, log_loss 0.693, accuracy 0.5"
)
USER_CHUNK: Final = 64


class EvaluatedUsers:
    """E users with their histories, as a ranker reads them; use it in eval mode, without gradients."""

    def __init__(self, model: Ranker, users: IntArray, histories: Ragged) -> None:
        """Take user rows (E,), 0 for somebody unknown, and item rows (E rows)."""
        device = model.device
        padded = histories.left_padded(np.arange(len(histories)), model.config.max_history)
        self.model = model
        self.user = torch.from_numpy(users).to(device)
        self.history = torch.from_numpy(padded).to(device)
        # Row 0 is padding, as in every table.
        self.items, self.features = model.rank_tower.describe(torch.arange(model.config.n_items + 1, device=device))

    def catalogue(self, users: slice) -> Tensor:
        """Score all items for some users: (users, n_items, 2) float32 on the CPU."""
        history, tower = self.history[users], self.model.rank_tower
        scores: Tensor = tower.score(
            tower.user_tower(self.user[users], history),
            self.items[None, 1:],
            self.features[None, 1:],
            self.items[history],
            history != PADDING,
        )
        return scores.cpu()

    def candidates(self, rows: IntArray) -> Tensor:
        """Score candidates: (E, C) int64 item rows -> (E, C, 2) float32 on the CPU."""
        chunks = zip(
            *(
                torch.split(part, USER_CHUNK)
                for part in (self.user, self.history, torch.from_numpy(rows).to(self.user))
            ),
            strict=True,
        )
        return torch.cat([self.model.rank_tower(*chunk) for chunk in chunks]).cpu()


@torch.no_grad()
def catalogue_metrics(model: Ranker, split: Split, histories: Ragged, targets: IntArray) -> dict[str, float]:
    """Rank the whole catalogue by the head that candidates are ordered by; otherwise as `evaluation.evaluate`."""
    return summarize(rank_users_by_ranker(model, split.evaluated + 1, histories, targets, K), K)


@torch.no_grad()
def rank_users_by_ranker(model: Ranker, users: IntArray, histories: Ragged, targets: IntArray, k: int) -> Ranking:
    """Do what `evaluation.rank_users` does, by the head that candidates are ordered by."""
    was_training = model.training
    known = EvaluatedUsers(model.eval(), users, histories)
    head = HEADS.index(model.heads[0])
    ranking = rank_scores(
        lambda chunk: known.catalogue(chunk)[..., head], histories, torch.from_numpy(targets), k, chunk=USER_CHUNK
    )
    model.train(was_training)
    return ranking


@torch.no_grad()
def click_metrics(model: Ranker, split: Split, histories: Ragged, targets: IntArray) -> dict[str, float]:
    """Return auc, log_loss and accuracy under `CLICK_PROTOCOL`; nothing if users have consumed all that was drawn."""
    was_training = model.training
    unseen = unseen_items(split, N_UNSEEN, UNSEEN_SEED)
    rows = np.concatenate([targets[:, None], unseen], axis=1)
    logits = EvaluatedUsers(model.eval(), split.evaluated + 1, histories).candidates(rows)[..., 0]
    model.train(was_training)
    return judge_clicks(logits, torch.from_numpy(unseen != PADDING))


def judge_clicks(logits: Tensor, drawn: Tensor) -> dict[str, float]:
    """Compare the click logits of targets with those of unseen items.

    Args:
        logits: (E, 1 + N) float32, the target first.
        drawn: (E, N) bool, False where there is no unseen item.

    Returns:
        auc, log_loss and accuracy; nothing if there is no unseen item at all.
    """
    if not bool(drawn.any()):
        return {}
    positive, negative = logits[:, :1].expand(drawn.shape)[drawn], logits[:, 1:][drawn]
    logits = torch.cat([positive, negative])
    label = torch.cat([torch.ones_like(positive), torch.zeros_like(negative)])
    return {
        "auc": float(binary_auroc(logits.sigmoid(), label.long())),
        "log_loss": float(torch.nn.functional.binary_cross_entropy_with_logits(logits, label)),
        "accuracy": float(binary_accuracy(logits.sigmoid(), label.long())),
    }


@torch.no_grad()
def rating_metrics(
    model: Ranker, split: Split, histories: Ragged, targets: IntArray, ratings: FloatArray, mean: float
) -> dict[str, float]:
    """Compare the rating head with the ratings (E,) of the targets, and with always saying `mean`.

    Returns:
        mae, mse, mae_of_mean, mse_of_mean; nothing if fewer than two targets are rated.
    """
    was_training = model.training
    rated = np.isfinite(ratings)
    said = EvaluatedUsers(model.eval(), split.evaluated + 1, histories).candidates(targets[:, None])[rated, 0, 1]
    model.train(was_training)
    return judge_ratings(said, torch.from_numpy(ratings[rated]), mean)


def judge_ratings(said: Tensor, given: Tensor, mean: float) -> dict[str, float]:
    """Compare guessed with given ratings, (n,) float32 both; returns as `rating_metrics`."""
    if given.numel() < 2:
        return {}
    always = torch.full_like(given, mean)
    return {
        "mae": float(mean_absolute_error(said, given)),
        "mse": float(mean_squared_error(said, given)),
        "mae_of_mean": float(mean_absolute_error(always, given)),
        "mse_of_mean": float(mean_squared_error(always, given)),
    }


def ranker_metrics(
    model: Ranker, split: Split, ratings: Ratings, histories: Ragged, targets: IntArray, given: FloatArray
) -> dict[str, float]:
    """Return all that applies to the trained heads, for one part of a split."""
    metrics = catalogue_metrics(model, split, histories, targets)
    if "click" in model.heads:
        metrics |= click_metrics(model, split, histories, targets)
    if "rating" in model.heads:
        metrics |= rating_metrics(model, split, histories, targets, given, ratings.mean)
    return metrics
