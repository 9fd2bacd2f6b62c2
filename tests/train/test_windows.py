"""Windows cover every pair of an item and the next exactly once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from fuserec.train.ragged import Ragged
from fuserec.train.windows import WindowLoader

# Values are unique over all rows, so that a pair names its place.
LENGTHS = (1, 2, 3, 9, 10, 11, 25, 0)
SEQUENCES = Ragged.from_lengths(np.arange(1, sum(LENGTHS) + 1), np.array(LENGTHS))


def pairs_of_epoch(loader: WindowLoader) -> Counter[tuple[int, int, int]]:
    seen: Counter[tuple[int, int, int]] = Counter()
    for user, history, target in loader:
        assert history.shape == target.shape == (user.shape[0], loader.max_history)
        assert user.shape[0] <= loader.batch_size
        for row, position in torch.nonzero(target).tolist():
            seen[int(user[row]), int(history[row, position]), int(target[row, position])] += 1
    return seen


def test_every_pair_once() -> None:
    expected = Counter(
        (row + 1, int(SEQUENCES[row][i]), int(SEQUENCES[row][i + 1]))
        for row in range(len(SEQUENCES))
        for i in range(len(SEQUENCES[row]) - 1)
    )
    loader = WindowLoader(SEQUENCES, max_history=5, batch_size=3, seed=0)
    for _ in range(4):
        assert pairs_of_epoch(loader) == expected


def test_epochs_differ_and_equal_seeds_agree() -> None:
    def epochs(seed: int) -> list[list[list[int]]]:
        loader = WindowLoader(SEQUENCES, max_history=5, batch_size=64, seed=seed)
        return [batch.history.tolist() for _ in range(2) for batch in loader]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1) != [first, second]
