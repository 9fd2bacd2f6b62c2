"""Augmentation of training windows: crop, reorder and mask.

The operations of CL4SRec (Xie et al. 2022), applied to what the recommender reads while it learns the next item; there
is no second view and no contrast between views. None of them lets a position see an item that it is to predict.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fuserec.train.windows import WindowBatch

CROP_SHARE: Final = 0.6
REORDER_SHARE: Final = 0.2


def augment(batch: WindowBatch, *, crop: float, reorder: float, mask: float) -> WindowBatch:
    """Change a batch at random.

    Args:
        batch: as the loader cut it.
        crop: probability of a window to lose all but a run of `CROP_SHARE` of its items.
        reorder: probability of a window to have a run of `REORDER_SHARE` of its items shuffled.
        mask: probability of an item of the history to read as padding.

    Returns:
        A batch of the same shape; positions from which nothing can be learned any more have no target.
    """
    if crop:
        batch = cropped(batch, crop)
    if reorder:
        batch = reordered(batch, reorder)
    if mask:
        batch = masked(batch, mask)
    return batch


def cropped(batch: WindowBatch, probability: float) -> WindowBatch:
    """Keep a run of some windows' items and hide what lies before and after."""
    lost = ~_random_run(batch.history, CROP_SHARE) & _chosen(batch.history, probability)
    return batch._replace(history=batch.history.masked_fill(lost, 0), target=batch.target.masked_fill(lost, 0))


def reordered(batch: WindowBatch, probability: float) -> WindowBatch:
    """Shuffle a run of some windows' items.

    Within the run a position may have its own target before it; only the last one, which has all of the run behind
    it, keeps its target.
    """
    run = _random_run(batch.history, REORDER_SHARE) & _chosen(batch.history, probability)
    position = torch.arange(run.shape[1], device=run.device).expand(run.shape)
    # Random keys between the place of the run's first item and the place after: all others stay where they are.
    first = _first(run)
    key = torch.where(run, first + torch.rand(run.shape, device=run.device), position)
    history = batch.history.gather(1, key.argsort(dim=1))
    last = run & ~torch.nn.functional.pad(run[:, 1:], (0, 1))
    return batch._replace(history=history, target=batch.target.masked_fill(run & ~last, 0))


def masked(batch: WindowBatch, probability: float) -> WindowBatch:
    """Hide items of the history one by one; a position with nothing left to read has no target."""
    hidden = torch.rand(batch.history.shape, device=batch.history.device) < probability
    history = batch.history.masked_fill(hidden, 0)
    nothing = (history != 0).cumsum(dim=1) == 0
    return batch._replace(history=history, target=batch.target.masked_fill(nothing, 0))


def _chosen(history: Tensor, probability: float) -> Tensor:
    """(B, 1) bool: which windows are changed."""
    return torch.rand(history.shape[0], 1, device=history.device) < probability


def _random_run(history: Tensor, share: float) -> Tensor:
    """(B, L) bool: a run of that share of each window's items, at least one, at a random place among them."""
    present = history != 0
    count = present.sum(dim=1, keepdim=True)
    length = (count * share).ceil().long()
    room = count - length + 1
    # rand() is below 1, but its product may round up to the whole.
    offset = (torch.rand(history.shape[0], 1, device=history.device) * room).long().clamp(max=room - 1)
    start = _first(present) + offset
    position = torch.arange(history.shape[1], device=history.device)
    return (position >= start) & (position < start + length)


def _first(marked: Tensor) -> Tensor:
    """(B, 1) int64: the first marked column of each row."""
    return marked.int().argmax(dim=1, keepdim=True)
