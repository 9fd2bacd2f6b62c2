"""Whom of the catalogue the lists show: coverage, concentration, novelty, and exposure by popularity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.errors import DataError
from fuserec.train.questions import Questions
from fuserec.train.ragged import IntArray
from fuserec.train.split import Split

# From the most popular item down: the head are those that hold the first half of all interactions together, the torso
# those that hold the next 40 %, and the tail the rest.
HEAD: Final = 0.5
TORSO: Final = 0.9
GROUPS: Final = ("head", "torso", "tail")
CUTS: Final = (HEAD, TORSO, 1.0)


@dataclass(frozen=True)
class Popularity:
    """How often the items were consumed in the training part.

    Attributes:
        item_ids: (I,) int64, sorted.
        counts: (I,) int64 interactions.
    """

    item_ids: IntArray
    counts: IntArray

    @classmethod
    def of(cls, split: Split) -> Popularity:
        """Count the training part of a split."""
        return cls(split.item_ids, np.bincount(split.train.values - 1, minlength=split.item_ids.size))

    @property
    def self_information(self) -> NDArray[np.float64]:
        """(I,) bits: -log2 of the probability that an interaction is with the item, one added to every count."""
        return np.asarray(-np.log2((self.counts + 1) / (self.counts + 1).sum()))

    @property
    def group(self) -> IntArray:
        """(I,) int64 index into `GROUPS`; of items equally popular the one with the lower id counts as more so."""
        order = np.argsort(-self.counts, kind="stable")
        before = np.cumsum(self.counts[order]) - self.counts[order]
        total = max(1, int(self.counts.sum()))
        group = np.empty(order.size, dtype=np.int64)
        group[order] = (before >= HEAD * total).astype(np.int64) + (before >= TORSO * total)
        return group

    def ranks(self, questions: Questions) -> IntArray:
        """Return where each target comes if everybody is shown the most popular items that they did not have.

        Of items equally popular the one with the lower id comes first; what a user had before is left out, but for the
        target.

        Returns:
            (E,) int64, 1 is best.

        Raises:
            DataError: if a target is not in the catalogue.
        """
        place = np.empty(self.counts.size, dtype=np.int64)
        place[np.argsort(-self.counts, kind="stable")] = np.arange(1, self.counts.size + 1)
        target = self.lines(questions.targets)
        user, item = questions.histories.row_of_value, questions.histories.values
        user, item = user[np.isin(item, self.item_ids)], item[np.isin(item, self.item_ids)]
        pairs = np.unique(np.stack([user, np.searchsorted(self.item_ids, item)]), axis=1)
        is_before = place[pairs[1]] < place[target[pairs[0]]]
        return np.asarray(place[target] - np.bincount(pairs[0][is_before], minlength=len(questions)))

    def lines(self, top: NDArray[np.int64]) -> IntArray:
        """Turn lists of item ids into lists of indices into `item_ids`, -1 for "none".

        Raises:
            DataError: if an item is not in the catalogue.
        """
        place = np.minimum(np.searchsorted(self.item_ids, top), self.item_ids.size - 1)
        foreign = (self.item_ids[place] != top) & (top != NO_ID)
        if foreign.any():
            raise DataError(
                f"{np.unique(top[foreign]).size} recommended items are not in the data, such as {top[foreign][0]}; "
                "expected the data that the recommender was trained on, or newer data with all of its items"
            )
        return np.where(top == NO_ID, -1, place)


@dataclass(frozen=True)
class GroupExposure:
    """One popularity group: its items, and its shares, 0 to 1, of catalogue, interactions and places in the lists.

    From the most popular item down, the items of this group and those above it hold the share `cut` of interactions.
    """

    group: str
    cut: float
    n_items: int
    share_of_catalogue: float
    share_of_interactions: float
    share_of_exposure: float


def novelty_of_lists(lines: IntArray, popularity: Popularity) -> NDArray[np.float64]:
    """Mean self-information of each list (Vargas and Castells 2011): (E, K) -> (E,) bits, 0 for an empty list."""
    shown = lines >= 0
    bits = np.where(shown, popularity.self_information[lines], 0.0)
    return np.asarray(bits.sum(axis=1) / np.maximum(1, shown.sum(axis=1)))


def times_shown(lines: IntArray, n_items: int) -> IntArray:
    """Count in how many lists each item is: (E, K) -> (n_items,) int64."""
    return np.bincount(lines[lines >= 0], minlength=n_items)


def gini(counts: IntArray) -> float:
    """Gini coefficient of (n,) counts: 0 when all are equal, near 1 when one item has everything."""
    n, total = counts.size, int(counts.sum())
    if total == 0:
        return 0.0
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(counts)).sum() / (n * total))


def exposure_by_group(shown: IntArray, popularity: Popularity) -> list[GroupExposure]:
    """Compare the shares of each popularity group; shown is (I,) int64."""
    group = popularity.group
    sums = [
        np.bincount(group, weights=weights, minlength=len(GROUPS)) / max(1, int(weights.sum()))
        for weights in (np.ones_like(shown), popularity.counts, shown)
    ]
    sizes = np.bincount(group, minlength=len(GROUPS))
    return [
        GroupExposure(name, CUTS[place], int(sizes[place]), *(float(shares[place]) for shares in sums))
        for place, name in enumerate(GROUPS)
    ]
