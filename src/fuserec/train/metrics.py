"""Ranking metrics with one relevant item a user, over the whole catalogue: no sampled negatives.

With a single relevant item at rank r (1 is best), HR@K = Recall@K = [r <= K], NDCG@K = [r <= K] / log2(r + 1) and
MRR@K = [r <= K] / r; each is averaged over users. Coverage@K is the share of the catalogue that anybody sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from fuserec.train.ragged import Ragged

DEFAULT_CHUNK: Final = 1024


@dataclass(frozen=True)
class Ranking:
    """Where each user's target came, and what came first.

    Attributes:
        ranks: (B,) int64, 1 is best.
        top: (B, K) int64 item indices (0 is line 0 of the item vectors), best first; -1 where nothing is left.
        n_items: size of the catalogue.
    """

    ranks: Tensor
    top: Tensor
    n_items: int


@torch.no_grad()
def rank_catalogue(
    user_vectors: Tensor,
    item_vectors: Tensor,
    seen: Ragged,
    targets: Tensor,
    k: int,
    *,
    chunk: int = DEFAULT_CHUNK,
) -> Ranking:
    """Rank every item the user has not seen by dot product; see `rank_scores`.

    Args:
        user_vectors: (B, D) float32.
        item_vectors: (I, D) float32.
        seen: (B rows) item rows, 1..I, that are taken out of the ranking.
        targets: (B,) int64 item rows, 1..I.
        k: length of the lists kept.
        chunk: users scored at once; bounds memory at chunk * I floats.

    Raises:
        ValueError: if a score is not finite, which would otherwise rank first without a word.
    """
    return rank_scores(lambda users: user_vectors[users] @ item_vectors.T, seen, targets, k, chunk=chunk)


@torch.no_grad()
def rank_scores(
    score: Callable[[slice], Tensor], seen: Ragged, targets: Tensor, k: int, *, chunk: int = DEFAULT_CHUNK
) -> Ranking:
    """Rank every item the user has not seen by what `score` says.

    A tie counts against the target: a model that scores everything alike must not look perfect. A target among the
    seen items (a repeated item) is ranked all the same.

    Args:
        score: called with a slice of users, returns their scores of all items, (users, I) float32, which may be
            written to.
        seen: (B rows) item rows, 1..I, that are taken out of the ranking.
        targets: (B,) int64 item rows, 1..I.
        k: length of the lists kept.
        chunk: users scored at once.

    Raises:
        ValueError: if a score is not finite, which would otherwise rank first without a word.
    """
    seen_user, seen_item = torch.from_numpy(seen.row_of_value), torch.from_numpy(seen.values - 1)
    ranks, top, n_items = [], [], 0
    for first in range(0, len(seen), chunk):
        target = targets[first : first + chunk, None] - 1
        scores = score(slice(first, first + target.shape[0]))
        n_items = scores.shape[1]
        if not bool(scores.isfinite().all()):
            raise ValueError("scores hold NaN or infinity; expected finite vectors")
        target_score = scores.gather(1, target)
        here = slice(int(seen.offsets[first]), int(seen.offsets[first + target.shape[0]]))
        scores[seen_user[here] - first, seen_item[here]] = -torch.inf
        scores.scatter_(1, target, target_score)
        ranks.append((scores >= target_score).sum(dim=1))
        best = scores.topk(min(k, n_items), dim=1)
        top.append(torch.where(best.values == -torch.inf, -1, best.indices))
    return Ranking(torch.cat(ranks), torch.cat(top), n_items)


def hit_rate(ranks: Tensor, k: int) -> float:
    """HR@K: (B,) int64 ranks -> share of users whose target is among the first K."""
    return float((ranks <= k).double().mean())


def ndcg(ranks: Tensor, k: int) -> float:
    """NDCG@K: (B,) int64 ranks -> mean of 1 / log2(rank + 1), 0 beyond K."""
    return float(torch.where(ranks <= k, 1.0 / torch.log2(ranks.double() + 1.0), 0.0).mean())


def mrr(ranks: Tensor, k: int) -> float:
    """MRR@K: (B,) int64 ranks -> mean of 1 / rank, 0 beyond K."""
    return float(torch.where(ranks <= k, 1.0 / ranks.double(), 0.0).mean())


def coverage(top: Tensor, n_items: int) -> float:
    """Share of `n_items` that appears in any of the lists `top`, (B, K) int64 with -1 for "none"."""
    shown: Tensor = torch.unique(top[top >= 0])
    return shown.numel() / n_items


def summarize(ranking: Ranking, k: int) -> dict[str, float]:
    """Return hr, ndcg, mrr and coverage at `k`, keyed as in `metrics.json`: "hr@10"."""
    return {
        f"hr@{k}": hit_rate(ranking.ranks, k),
        f"ndcg@{k}": ndcg(ranking.ranks, k),
        f"mrr@{k}": mrr(ranking.ranks, k),
        f"coverage@{k}": coverage(ranking.top[:, :k], ranking.n_items),
    }
