"""What a cross-encoder is worth to users drawn at random: its order of a list, its view of clicks, its ratings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fuserec.models.ranker_text import HEADS, TextRanker
from fuserec.models.retriever import PADDING
from fuserec.train.evaluation import K
from fuserec.train.metrics import Ranking, rank_scores, summarize
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.ranking_metrics import judge_clicks, judge_ratings
from fuserec.train.ranking_text_data import N_POPULAR, N_UNSEEN, SEED, SampledUsers

PROTOCOL: Final = (
    f"time-ordered leave-one-out, users drawn at random (seed {SEED}); the {N_POPULAR} most popular unseen items "
    f"reordered, a target outside is a miss; clicks: target against {N_UNSEEN} items drawn uniformly, both labels alike"
)
USER_CHUNK: Final = 4
PAIRS_AT_ONCE: Final = 256
MANY_PAIRS: Final = 50_000

logger = logging.getLogger(__name__)


@torch.no_grad()
def text_ranker_metrics(
    model: TextRanker, users: SampledUsers, mean_rating: float, *, ranking: bool = True
) -> dict[str, float]:
    """Return all metrics that apply to the trained heads.

    Args:
        model: dropout is off during the call.
        users: whom it is judged on.
        mean_rating: what a guess that knows nothing says.
        ranking: whether to order the popular items too, which costs most.
    """
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    if ranking:
        head = HEADS.index(model.heads[0])
        metrics |= _ranking_metrics(users, _scores(model, users, users.popular)[..., head])
    judged = _scores(model, users, np.concatenate([users.targets[:, None], users.unseen], axis=1))
    model.train(was_training)
    if "click" in model.heads:
        metrics |= judge_clicks(judged[..., 0], torch.from_numpy(users.unseen != PADDING))
    if "rating" in model.heads:
        rated = np.isfinite(users.ratings)
        metrics |= judge_ratings(judged[rated, 0, 1], torch.from_numpy(users.ratings[rated]), mean_rating)
    return metrics


@torch.no_grad()
def rank_users_by_text_ranker(
    model: TextRanker, histories: Ragged, targets: IntArray, k: int, on_progress: Callable[[int], None]
) -> Ranking:
    """Do what `evaluation.rank_users` does, by the head that candidates are ordered by.

    Every user with every item is a text to be read: E users cost E * n_items passes through the transformer.

    Args:
        model: in eval mode.
        histories: (E rows) item rows.
        targets: (E,) item rows.
        k: length of the lists kept.
        on_progress: told after every user.
    """
    padded = torch.from_numpy(histories.left_padded(np.arange(len(histories)), model.config.max_history))
    items = torch.arange(1, model.config.n_items + 1)
    head = HEADS.index(model.heads[0])
    if (pairs := len(histories) * model.config.n_items) > MANY_PAIRS:
        logger.warning(
            f"{len(histories):,} users with {model.config.n_items:,} items are {pairs:,} texts for ranker-text, "
            "some hundred a second on a CPU; --users evaluates fewer"
        )

    def score(users: slice) -> Tensor:
        history = padded[users]
        parts = [model.rank_tower.packed(history, rows[None]) for rows in torch.split(items, PAIRS_AT_ONCE)]
        on_progress(len(history))
        return torch.cat(parts, dim=1)[..., head]

    return rank_scores(score, histories, torch.from_numpy(targets), k, chunk=1)


def popularity_metrics(users: SampledUsers) -> dict[str, float]:
    """Return the ranking metrics of the popular items in the order in which they are reordered from."""
    places = torch.arange(users.popular.shape[1], 0, -1, dtype=torch.float32)
    return _ranking_metrics(users, places.expand(users.popular.shape))


def _scores(model: TextRanker, users: SampledUsers, candidates: IntArray) -> Tensor:
    """Score (S, C) candidates: (S, C, 2) float32 on the CPU."""
    device = model.rank_tower.tokens.device
    chunks = zip(
        *(torch.split(torch.from_numpy(rows).to(device), USER_CHUNK) for rows in (users.histories, candidates)),
        strict=True,
    )
    return torch.cat([model.rank_tower.packed(*chunk) for chunk in chunks]).cpu()


def _ranking_metrics(users: SampledUsers, scores: Tensor) -> dict[str, float]:
    """Rank the popular items by (S, `N_POPULAR`) scores; a tie counts against the target, as everywhere."""
    rows = torch.from_numpy(users.popular)
    scores = scores.masked_fill(rows == PADDING, -torch.inf)
    is_target = rows == torch.from_numpy(users.targets)[:, None]
    target_score = scores.masked_fill(~is_target, torch.inf).min(dim=1, keepdim=True).values
    # A miss is one in a catalogue of fewer than K items, too.
    miss = max(users.n_items, K + 1)
    ranks = torch.where(is_target.any(dim=1), (scores >= target_score).sum(dim=1), miss)
    top = rows.gather(1, scores.topk(min(K, rows.shape[1]), dim=1).indices) - 1
    return summarize(Ranking(ranks, top, users.n_items), K)
