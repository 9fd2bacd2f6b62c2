"""Examples, what each chose, and the candidates it did not choose, scored; and the losses over them.

info-nce   cross-entropy of telling the item from the candidates at hand (van den Oord et al. 2018); how likely each
           was to be among them is taken out of its logit (logQ correction, Yi et al. 2019)
softmax    cross-entropy over the whole catalogue; candidates that were drawn stand for all, each weighed by how
           often it was to be expected in the draw (Bengio and Senecal 2008; Jean et al. 2015)
bpr        a logistic loss a pair (Rendle et al. 2009)
margin     a hinge a pair
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fuserec.train.losses import bpr, choice, margin_ranking

LOSSES: Final = ("info-nce", "softmax", "bpr", "margin")


class Contrast(NamedTuple):
    """B examples against C columns: an example's own item is one of them, the others are candidates.

    Attributes:
        scores: (B, C) float32 cosines.
        own: (B,) int64 column of what was chosen.
        is_negative: (B, C) bool, False where a candidate must not count, and at `own`.
        log_q: (C,) or (B, C) float32, log of how likely a candidate was to be the item of this column.
        n_drawn: how many candidates were drawn.
    """

    scores: Tensor
    own: Tensor
    is_negative: Tensor
    log_q: Tensor
    n_drawn: int


def among_each_other(users: Tensor, items: Tensor, is_negative: Tensor, log_q: Tensor) -> Contrast:
    """Compare every user with the items of all users, and with more items if there are any.

    Args:
        users: (B, D) float32 unit vectors.
        items: (B + M, D) float32 unit vectors, the first B being what the users chose.
        is_negative: (B, B + M) bool, False where a user has consumed the item, so also where they chose it.
        log_q: (B + M,) float32 of the items.
    """
    own = torch.arange(users.shape[0], device=users.device)
    return Contrast(users @ items.T, own, is_negative, log_q, items.shape[0])


def beside_candidates(users: Tensor, items: Tensor, is_negative: Tensor, log_q: Tensor) -> Contrast:
    """Compare every user with their own item, in column 0, and with candidates, the same for all.

    Args:
        users: (B, D) float32 unit vectors.
        items: (B + M, D) float32 unit vectors: what the users chose, then the candidates.
        is_negative: (B, B + M) bool, as for `among_each_other`; the first B columns are not read.
        log_q: (B + M,) float32 of the items.
    """
    batch = users.shape[0]
    positive = (users * items[:batch]).sum(dim=1, keepdim=True)
    candidates = items[batch:]
    return Contrast(
        scores=torch.cat([positive, users @ candidates.T], dim=1),
        own=torch.zeros(batch, dtype=torch.int64, device=users.device),
        is_negative=torch.nn.functional.pad(is_negative[:, batch:], (1, 0)),
        log_q=torch.cat([log_q[:batch, None], log_q[batch:].expand(batch, -1)], dim=1),
        n_drawn=candidates.shape[0],
    )


def hardest(contrast: Contrast, count: int) -> Contrast:
    """Keep column 0, the own item, and of each example's negatives the `count` that score highest."""
    excluded = contrast.scores.detach().masked_fill(~contrast.is_negative, -torch.inf)
    best = excluded.topk(min(count, excluded.shape[1]), dim=1).indices
    columns = torch.cat([contrast.own[:, None], best], dim=1)
    is_negative = contrast.is_negative.gather(1, columns)
    return Contrast(
        contrast.scores.gather(1, columns), contrast.own, is_negative, contrast.log_q.gather(1, columns), best.shape[1]
    )


def contrast_loss(
    name: str, contrast: Contrast, *, temperature: float, margin: float, weight: Tensor | None = None
) -> Tensor:
    """Return one of `LOSSES`.

    Args:
        name: which.
        contrast: what is compared.
        temperature: divides the cosines, in all losses but "margin".
        margin: of "margin".
        weight: (B,) float32 of the examples; 1 if left out.
    """
    scores, own, is_negative, log_q, n_drawn = contrast
    if name == "info-nce":
        return choice(scores / temperature - log_q, own, is_negative, weight)
    if name == "softmax":
        # What was chosen is in the sum for certain, so it stands for itself alone.
        expected = (log_q + math.log(n_drawn)).expand(scores.shape).scatter(1, own[:, None], 0.0)
        return choice(scores / temperature - expected, own, is_negative, weight)
    positive = scores.gather(1, own[:, None])
    if name == "bpr":
        return bpr(positive / temperature, scores / temperature, is_negative, weight)
    return margin_ranking(positive, scores, is_negative, margin, weight)
