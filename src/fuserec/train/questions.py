"""What is asked of a recommender to evaluate it, and what it answers; in the caller's ids, whoever answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.errors import UsageError
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import Split

SPLITS: Final = ("validation", "test")


@dataclass(frozen=True)
class Questions:
    """One question for each of E users: what comes after this history?

    Attributes:
        user_ids: (E,) int64.
        histories: (E rows) item ids, oldest first.
        targets: (E,) int64 the item id that came.
    """

    user_ids: IntArray
    histories: Ragged
    targets: IntArray

    def __len__(self) -> int:
        return self.user_ids.size

    @property
    def n_repeats(self) -> int:
        """How many targets the user already had: torch ranks them all the same, bundles and servers never show them."""
        repeated = self.histories.values == self.targets[self.histories.row_of_value]
        return int(np.unique(self.histories.row_of_value[repeated]).size)

    def sample(self, n_users: int, seed: int) -> Questions:
        """Return the questions of `n_users` users drawn without replacement, in their old order."""
        if n_users >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), n_users, replace=False))
        return Questions(self.user_ids[chosen], self.histories.take(chosen), self.targets[chosen])


@dataclass(frozen=True)
class Answers:
    """The best items for each of E users.

    Attributes:
        top: (E, K) int64 item ids, best first; the tail is `NO_ID` where nothing is left.
        ranks: (E,) int64 where the target came, 1 is best; more than K where it is not in the list.
        ignored: item ids of the histories that the recommender does not know.
    """

    top: NDArray[np.int64]
    ranks: IntArray
    ignored: int = 0

    @classmethod
    def of_lists(cls, top: NDArray[np.int64], targets: IntArray, ignored: int) -> Answers:
        """Find the targets (E,) in the lists (E, K)."""
        hits = top == targets[:, None]
        ranks = np.where(hits.any(axis=1), hits.argmax(axis=1), top.shape[1]) + 1
        return cls(top, ranks, ignored)


def questions_of(split: Split, name: str) -> Questions:
    """Return the questions of the "validation" or the "test" part of a split.

    Raises:
        UsageError: if the name is another.
    """
    if name not in SPLITS:
        raise UsageError(f"split is {name!r}; expected {' or '.join(SPLITS)}")
    is_test = name == "test"
    histories = split.test_histories if is_test else split.validation_histories
    targets = split.test_targets if is_test else split.validation_targets
    item_histories = Ragged(split.item_ids[histories.values - 1], histories.offsets)
    return Questions(split.user_ids[split.evaluated], item_histories, split.item_ids[targets - 1])


def padded_to(top: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Widen lists (E, <= k) to k columns with `NO_ID`."""
    return np.pad(top, ((0, 0), (0, k - top.shape[1])), constant_values=NO_ID)
