"""In-batch negatives: how likely an item is to be one, and which items must not be one for a user."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fuserec.train.ragged import IntArray, Ragged


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
