"""Time-ordered leave-one-out: a user's last item is the test, the one before it the validation, the rest trains."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import polars as pl

from fuserec.train.data import MIN_INTERACTIONS, DataSet
from fuserec.train.ragged import IntArray, Ragged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Sequences of item rows (1..n_items, 0 is kept for padding), oldest first; users and items sorted by id.

    Attributes:
        user_ids: (U,) int64; user row = index + 1.
        item_ids: (I,) int64; item row = index + 1.
        full: (U rows) everything each user consumed.
        train: (U rows) what may be learned from: all but the last two items of evaluated users, everything of others.
        evaluated: (E,) int64 indices into `user_ids` of users with at least 3 interactions.
        validation_targets: (E,) int64 item rows, second last of each evaluated user.
        test_targets: (E,) int64 item rows, last of each evaluated user.
    """

    user_ids: IntArray
    item_ids: IntArray
    full: Ragged
    train: Ragged
    evaluated: IntArray
    validation_targets: IntArray
    test_targets: IntArray

    @property
    def validation_histories(self) -> Ragged:
        """(E rows) what precedes the validation target."""
        return self.train.take(self.evaluated)

    @property
    def test_histories(self) -> Ragged:
        """(E rows) what precedes the test target; it includes the validation target."""
        histories = self.full.take(self.evaluated)
        return histories.without_last(np.ones(len(histories), dtype=np.int64))


def leave_one_out(dataset: DataSet) -> Split:
    """Split a data set per user by time; equal timestamps keep the order of the rows in the file."""
    # A stable sort, so that ties need no key of their own.
    ordered = dataset.interactions.sort("user_id", "timestamp", maintain_order=True)
    item_ids = dataset.items["item_id"].to_numpy()
    users = ordered.group_by("user_id", maintain_order=True).agg(pl.len())
    rows = np.searchsorted(item_ids, ordered["item_id"].to_numpy()).astype(np.int64) + 1
    full = Ragged.from_lengths(rows, users["len"].to_numpy())

    is_evaluated = full.lengths >= MIN_INTERACTIONS
    evaluated = np.flatnonzero(is_evaluated)
    if evaluated.size < len(full):
        logger.info("%d of %d users have fewer than %d interactions: trained on, not evaluated",
                    len(full) - evaluated.size, len(full), MIN_INTERACTIONS)  # fmt: skip
    last = full.offsets[evaluated + 1] - 1
    return Split(
        user_ids=users["user_id"].to_numpy(),
        item_ids=item_ids,
        full=full,
        train=full.without_last(np.where(is_evaluated, 2, 0)),
        evaluated=evaluated,
        validation_targets=full.values[last - 1],
        test_targets=full.values[last],
    )
