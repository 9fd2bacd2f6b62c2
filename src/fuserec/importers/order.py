"""Whether the rows of factors are who they are taken for, told by the interactions that the model was fitted on.

The factors of the user and of the item of a known pair have a larger product than those of two of different pairs:

    a = P(s(u, i) > s(u', i)),   u' the user of another known pair

Items stay in place while users are exchanged, so neither a popular item nor an active user counts. Where the order of
users or of items is not the model's, both products are alike and `a` is 0.5, give or take what it is for rows in orders
drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.importers.matching import Ids

PAIRS: Final = 20_000
# Fewer pairs than this say nothing for certain.
ENOUGH_PAIRS: Final = 200
_ROUNDS: Final = 4
_RANDOM_ORDERS: Final = 20
_SURE: Final = 4.0  # standard deviations


@dataclass(frozen=True)
class Agreement:
    """How well rows and interactions fit.

    Attributes:
        value: `a`.
        by_chance: mean of it over rows in random orders.
        spread: standard deviation of it over these.
        n_pairs: pairs that were looked at.
    """

    value: float
    by_chance: float
    spread: float
    n_pairs: int

    @property
    def is_chance(self) -> bool:
        """Whether rows in a random order could have given it."""
        return self.value < self.by_chance + _SURE * self.spread

    @property
    def is_certain(self) -> bool:
        """Whether there were enough pairs to tell."""
        return self.n_pairs >= ENOUGH_PAIRS


def agreement(users: NDArray[np.float32], items: NDArray[np.float32], pairs: Ids) -> Agreement:
    """Compare factors with interactions.

    Args:
        users: (U, D) factors.
        items: (I, D) factors.
        pairs: (n, 2) rows of user and item of each interaction; of many, a sample is looked at.
    """
    rng = np.random.default_rng(0)
    pairs = np.unique(pairs, axis=0)
    if len(pairs) > PAIRS:
        pairs = pairs[rng.choice(len(pairs), PAIRS, replace=False)]
    random = [
        _value(users[rng.permutation(len(users))], items[rng.permutation(len(items))], pairs, rng)
        for _ in range(_RANDOM_ORDERS)
    ]
    return Agreement(_value(users, items, pairs, rng), float(np.mean(random)), float(np.std(random)), len(pairs))


def _value(users: NDArray[np.float32], items: NDArray[np.float32], pairs: Ids, rng: np.random.Generator) -> float:
    """Return `a`, ties counting half."""
    user, item = users[pairs[:, 0]].astype(np.float64), items[pairs[:, 1]].astype(np.float64)
    known = (user * item).sum(axis=1)
    won, compared = 0.0, 0
    for _ in range(_ROUNDS):
        order = rng.permutation(len(pairs))
        is_other = pairs[order, 0] != pairs[:, 0]
        exchanged = (user[order] * item).sum(axis=1)
        won += float(((known > exchanged) + 0.5 * (known == exchanged))[is_other].sum())
        compared += int(is_other.sum())
    return won / compared if compared else 0.5
