"""Training at shifted item embeddings: by noise, or to where the loss is worst.

noise         every vector of the item table is moved by a fixed length in a random direction, anew each step, as
              SimGCL does (Yu et al. 2022)
adversarial   every vector is moved by a fixed length along the gradient of the loss, which raises the loss most;
              loss + weight * loss there is minimized: adversarial personalized ranking (He et al. 2018), the fast
              gradient method of Goodfellow et al. (2015) with the length of a vector in place of its largest entry
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fuserec.models.retriever import PADDING

# The name that the table of item ids has in the task of every retriever whose history is read from one.
ITEM_TABLE: Final = "model.user_tower.item_embedding.weight"


def robust_loss(task: nn.Module, batch: object, *, noise: float, epsilon: float, weight: float) -> Tensor:
    """Return the loss of a batch at the item embeddings and, if wanted, at worse ones.

    Args:
        task: called with `batch`, it returns the loss; `ITEM_TABLE` is one of its parameters.
        batch: what the task learns from.
        noise: length of the random shift; 0 for none.
        epsilon: length of the adversarial shift; 0 for none.
        weight: of the loss at the adversarial shift.

    Returns:
        Scalar float32.
    """
    table = task.get_parameter(ITEM_TABLE)
    loss = loss_at(task, batch, random_shift(table, noise) if noise else None)
    if not epsilon:
        return loss
    return loss + weight * loss_at(task, batch, adversarial_shift(loss, table, epsilon))


def loss_at(task: nn.Module, batch: object, shift: Tensor | None) -> Tensor:
    """Return the loss with `shift`, (n_items + 1 or more, D) float32, added to the item table for this call."""
    if shift is None:
        loss: Tensor = task(batch)
    else:
        loss = functional_call(task, {ITEM_TABLE: task.get_parameter(ITEM_TABLE) + shift}, (batch,))
    return loss


def random_shift(table: Tensor, length: float) -> Tensor:
    """Return a shift of that length for every row of an item table but that of padding, which stays zero."""
    shift = length * nn.functional.normalize(torch.randn_like(table), dim=-1)
    shift[PADDING] = 0.0
    return shift


def adversarial_shift(loss: Tensor, table: Tensor, length: float) -> Tensor:
    """Return the shift of that length along the gradient of `loss` for every row that has one, 0 for others."""
    (gradient,) = torch.autograd.grad(loss, table, retain_graph=True)
    return length * nn.functional.normalize(gradient, dim=-1)
