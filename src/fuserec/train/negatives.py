"""Negatives: which items are drawn, how likely each is to be, and which must not be one for a user.

    in-batch     what the other examples of the batch chose (Yi et al. 2019)
    uniform      a draw from the catalogue
    popularity   a draw by how often items were consumed (Mikolov et al. 2013 draw words in this way)
    mixed        in-batch and uniform together (Yang et al. 2020), so that items nobody chose are seen, too
    hard         of a uniform draw, what scores highest now (dynamic negative sampling, Zhang et al. 2013)
    catalogue    every item

A draw is made once a batch and shared by its examples; what an example's user consumed is taken out for them alone.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fuserec.train.ragged import IntArray, Ragged

KINDS: Final = ("in-batch", "uniform", "popularity", "hard", "mixed", "catalogue")
# Kinds whose candidates include what the other examples of the batch chose.
OF_THE_BATCH: Final = ("in-batch", "mixed")


def draw(kind: str, count: int, log_q: Tensor) -> Tensor:
    """Draw the candidates of a batch other than those its own examples bring, with replacement.

    Args:
        kind: one of `KINDS`.
        count: how many; "in-batch" draws none and "catalogue" takes every item once.
        log_q: (n_items + 1,) float32 from `log_sampling_probability`.

    Returns:
        (M,) int64 item rows, on the device of `log_q`.
    """
    n_items, device = log_q.numel() - 1, log_q.device
    if kind == "in-batch":
        return torch.empty(0, dtype=torch.int64, device=device)
    if kind == "catalogue":
        return torch.arange(1, n_items + 1, device=device)
    if kind == "popularity":
        return torch.multinomial(log_q[1:].exp(), count, replacement=True) + 1
    return torch.randint(1, n_items + 1, (count,), device=device)


def log_draw_probability(kind: str, rows: Tensor, log_q: Tensor, n_batch: int, n_drawn: int) -> Tensor:
    """Return the log of how likely a candidate is to be each of these items.

    Args:
        kind: one of `KINDS`; of "hard", the probability of the draw that the hardest are taken from.
        rows: (...) int64 item rows.
        log_q: (n_items + 1,) float32 from `log_sampling_probability`.
        n_batch: candidates that come from the batch, and
        n_drawn: from `draw`: what is mixed in which parts.

    Returns:
        (...) float32.
    """
    uniform = -math.log(log_q.numel() - 1)
    if kind in ("in-batch", "popularity"):
        return log_q[rows]
    if kind == "mixed":
        share = n_drawn / (n_batch + n_drawn)
        return ((1.0 - share) * log_q[rows].exp() + share * math.exp(uniform)).log()
    return torch.full(rows.shape, uniform, device=rows.device)


def long_tail_weights(rows: IntArray, n_items: int, exponent: float) -> Tensor:
    """Return the weight of an example by its item: (n_items + 1,) float32, count to the power of -exponent.

    Scaled so that the weights of `rows` have mean 1: the step size keeps its meaning. 0 for an item not among them.

    Args:
        rows: (N,) int64 item rows of what may be learned from.
        n_items: size of the catalogue.
        exponent: 0 weighs examples alike, 1 items alike.
    """
    counts = torch.from_numpy(np.bincount(rows, minlength=n_items + 1)).double()
    weights = torch.where(counts > 0, counts.clamp(min=1.0) ** -exponent, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def log_sampling_probability(rows: IntArray, n_items: int) -> Tensor:
    """Return log of how likely each item is to fill a position of a batch: (n_items + 1,) float32, by item row.

    One is added to every count, as an item outside the training part may still be asked for.
    """
    counts = torch.from_numpy(np.bincount(rows, minlength=n_items + 1)).double() + 1.0
    return (counts / counts.sum()).log().float()


def consumption_keys(sequences: Ragged, n_items: int) -> Tensor:
    """Return the pairs of user row and item row as rising numbers, `user * (n_items + 1) + item`: (N,) int64."""
    keys = (sequences.row_of_value + 1) * (n_items + 1) + sequences.values
    return torch.from_numpy(np.unique(keys))


def is_consumed(keys: Tensor, users: Tensor, items: Tensor, n_items: int) -> Tensor:
    """Look all pairs up in `consumption_keys`: (U,) user rows and (I,) item rows, int64 -> (U, I) bool."""
    return pairs_are_consumed(keys, users[:, None], items[None, :], n_items)


def pairs_are_consumed(keys: Tensor, users: Tensor, items: Tensor, n_items: int) -> Tensor:
    """Look pairs up in `consumption_keys`: int64 rows of users and items, of shapes that broadcast to that returned."""
    wanted = users * (n_items + 1) + items
    place = torch.searchsorted(keys, wanted).clamp(max=keys.numel() - 1)
    return keys[place] == wanted
