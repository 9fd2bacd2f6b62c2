"""Losses that put what was chosen above what was not."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

# exp() of it is zero in float32, and unlike -inf it cannot turn a row into NaN.
MASKED: Final = -1e9


def info_nce(
    user_vectors: Tensor,
    item_vectors: Tensor,
    log_q: Tensor,
    item_ids: Tensor,
    temperature: float,
    *,
    not_negative: Tensor | None = None,
) -> Tensor:
    """Tell each user's item from the other items of the batch.

        loss = mean_i -log  exp(l_ii) / sum_j exp(l_ij),    l_ij = u_i . v_j / temperature - log q_j

    InfoNCE (van den Oord et al. 2018). The negatives are the other pairs' items, so an item is a negative as often as
    it is popular; subtracting the logarithm of that probability from its logit (logQ correction, Yi et al. 2019)
    makes the sum an estimate of the softmax over the whole catalogue. A pair whose item equals the row's own item is
    no negative and is left out of the sum, and so is what `not_negative` marks.

    Args:
        user_vectors: (B, D) float32 unit vectors, so that the dot product is the cosine.
        item_vectors: (B, D) float32 unit vectors, row i belonging to user i.
        log_q: (B,) float32, log of the probability with which item j gets into a batch position.
        item_ids: (B,) int64, to recognise equal items.
        temperature: positive; small values weigh the hardest negatives more.
        not_negative: (B, B) bool, True where item j must not count as a negative of user i; the diagonal is ignored.

    Returns:
        Scalar float32.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.
    """
    batch = user_vectors.shape[0]
    if user_vectors.ndim != 2 or item_vectors.shape != user_vectors.shape:
        raise ValueError(
            f"user_vectors and item_vectors have shapes {tuple(user_vectors.shape)} and {tuple(item_vectors.shape)}; "
            "expected (B, D) twice"
        )
    if log_q.shape != (batch,) or item_ids.shape != (batch,):
        raise ValueError(
            f"log_q and item_ids have shapes {tuple(log_q.shape)} and {tuple(item_ids.shape)}; expected ({batch},)"
        )
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a positive number")
    if not_negative is not None and not_negative.shape != (batch, batch):
        raise ValueError(f"not_negative has shape {tuple(not_negative.shape)}; expected ({batch}, {batch})")
    own = torch.arange(batch, device=item_ids.device)
    is_negative = item_ids[:, None] != item_ids[None, :]
    if not_negative is not None:
        is_negative = is_negative & ~not_negative
    return choice(user_vectors @ item_vectors.T / temperature - log_q, own, is_negative)


def choice(logits: Tensor, own: Tensor, is_negative: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of what was chosen among the candidates.

        loss = mean_i -w_i log  exp(l_i,own) / (exp(l_i,own) + sum over negatives j of exp(l_ij))

    Args:
        logits: (B, C) float32.
        own: (B,) int64, the column of what was chosen.
        is_negative: (B, C) bool, which other columns are in the sum; what it says of the column `own` is ignored.
        weight: (B,) float32 of the examples; 1 if left out.

    Returns:
        Scalar float32.
    """
    is_own = torch.zeros_like(is_negative).scatter_(1, own[:, None], True)
    losses = torch.nn.functional.cross_entropy(
        logits.masked_fill(~(is_negative | is_own), MASKED), own, reduction="none"
    )
    return losses.mean() if weight is None else (losses * weight).mean()


def bpr(positive: Tensor, negative: Tensor, is_negative: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean of -log sigmoid(positive - negative) over the pairs that are.

    Bayesian personalized ranking (Rendle et al. 2009).

    Args:
        positive: (B, 1) float32 scores of what was chosen.
        negative: (B, N) float32 scores of what was not.
        is_negative: (B, N) bool, False where a pair is none.
        weight: (B,) float32 of the examples; 1 if left out.

    Returns:
        Scalar float32; 0 if there is no pair.
    """
    return _mean_of_pairs(-torch.nn.functional.logsigmoid(positive - negative), is_negative, weight)


def margin_ranking(
    positive: Tensor, negative: Tensor, is_negative: Tensor, margin: float, weight: Tensor | None = None
) -> Tensor:
    """Return the mean of max(0, margin - positive + negative) over the pairs that are.

    The hinge of Weston et al. (2011, WSABIE) without its weights of ranks.

    Args:
        positive: (B, 1) float32 scores of what was chosen.
        negative: (B, N) float32 scores of what was not.
        is_negative: (B, N) bool, False where a pair is none.
        margin: by how much the one should exceed the other.
        weight: (B,) float32 of the examples; 1 if left out.

    Returns:
        Scalar float32; 0 if there is no pair.
    """
    return _mean_of_pairs(torch.relu(margin - positive + negative), is_negative, weight)


def _mean_of_pairs(losses: Tensor, is_pair: Tensor, weight: Tensor | None) -> Tensor:
    weighted = losses * is_pair if weight is None else losses * is_pair * weight[:, None]
    return weighted.sum() / is_pair.sum().clamp(min=1)
