"""Training batches: windows cut out of users' sequences, every position of which predicts the item after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuserec.train.ragged import IntArray, Ragged


class WindowBatch(NamedTuple):
    """One training step.

    Attributes:
        user: (B,) int64 user rows.
        history: (B, L) int64 item rows, 0 outside the user's sequence.
        target: (B, L) int64 the item row that follows `history` at each position, 0 where there is none to learn.
    """

    user: Tensor
    history: Tensor
    target: Tensor


class WindowLoader:
    """Iterates over all training positions once, in random windows of random order; each epoch cuts elsewhere.

    The cuts move because the positions at the start of a window see a short past: over epochs every item is predicted
    from a long history and from a short one.
    """

    def __init__(self, sequences: Ragged, max_history: int, batch_size: int, seed: int) -> None:
        """Prepare.

        Args:
            sequences: row i is what user row i + 1 consumed, oldest first.
            max_history: L, positions of a window.
            batch_size: B, windows of a batch.
            seed: of the cuts and of the order.
        """
        self.sequences = sequences
        self.max_history = max_history
        self.batch_size = batch_size
        self.generator = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[WindowBatch]:
        rows, starts = self._cuts()
        order = self.generator.permutation(rows.size)
        for first in range(0, rows.size, self.batch_size):
            chosen = order[first : first + self.batch_size]
            yield self._batch(rows[chosen], starts[chosen])

    def _cuts(self) -> tuple[IntArray, IntArray]:
        """Return row and start of every window that holds at least one pair of an item and the next."""
        n_pairs = self.sequences.lengths - 1
        users = np.flatnonzero(n_pairs > 0)
        shift = self.generator.integers(0, self.max_history, size=users.size)
        n_windows = (n_pairs[users] + shift + self.max_history - 1) // self.max_history
        rows = users.repeat(n_windows)
        within = np.arange(rows.size) - (np.cumsum(n_windows) - n_windows).repeat(n_windows)
        return rows, within * self.max_history - shift.repeat(n_windows)

    def _batch(self, rows: IntArray, starts: IntArray) -> WindowBatch:
        window = torch.from_numpy(self.sequences.windows(rows, starts, self.max_history + 1))
        history, target = window[:, :-1], window[:, 1:]
        # The first item of a sequence has nothing before it to be predicted from.
        return WindowBatch(torch.from_numpy(rows + 1), history, torch.where(history != 0, target, 0))
