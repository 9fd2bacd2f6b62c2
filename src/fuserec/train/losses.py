"""Contrastive losses."""

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
    left_out = item_ids[:, None] == item_ids[None, :]
    if not_negative is not None:
        left_out = left_out | not_negative
    left_out = left_out & (own[:, None] != own[None, :])
    logits = user_vectors @ item_vectors.T / temperature - log_q
    return torch.nn.functional.cross_entropy(logits.masked_fill(left_out, MASKED), own)


def bpr(positive: Tensor, negative: Tensor, is_negative: Tensor) -> Tensor:
    """Return the mean of -log sigmoid(positive - negative) over the pairs that are.

    Bayesian personalized ranking (Rendle et al. 2009).

    Args:
        positive: (B, 1) float32 scores of what was chosen.
        negative: (B, N) float32 scores of what was not.
        is_negative: (B, N) bool, False where a pair is none.

    Returns:
        Scalar float32; 0 if there is no pair.
    """
    losses = -torch.nn.functional.logsigmoid(positive - negative)
    return (losses * is_negative).sum() / is_negative.sum().clamp(min=1)
