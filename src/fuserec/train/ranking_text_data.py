"""What the cross-encoder learns from and is judged on: positions and users drawn at random, as reading all is dear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuserec.models.retriever import PADDING
from fuserec.train.negatives import consumption_keys, pairs_are_consumed
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.ranking_data import FloatArray, Ratings, unseen_items
from fuserec.train.split import Split

N_UNSEEN: Final = 10
N_POPULAR: Final = 50
SEED: Final = 0


class Positions(NamedTuple):
    """One training step.

    Attributes:
        history: (B, H) int64 item rows, left-padded with 0.
        candidates: (B, 1 + N) int64 item rows, what followed, then what was drawn; 0 where that was consumed.
        rating: (B,) float32 what the user gave to what followed, NaN where nothing is known.
    """

    history: Tensor
    candidates: Tensor
    rating: Tensor

    def without_negatives(self) -> Positions:
        """Keep only what followed."""
        return self._replace(candidates=self.candidates[:, :1])


class PositionSampler:
    """Draws positions of the training sequences that have something before them."""

    def __init__(self, split: Split, ratings: Ratings, max_history: int, n_negatives: int) -> None:
        self.sequences = split.train
        self.ratings = ratings.train
        self.max_history = max_history
        self.n_negatives = n_negatives
        self.n_items = int(split.item_ids.size)
        self.consumed = consumption_keys(split.train, self.n_items)
        self.rows = split.train.row_of_value
        within = np.arange(split.train.values.size) - split.train.offsets[:-1].repeat(split.train.lengths)
        self.places = np.flatnonzero(within > 0)
        self.within = within

    def batches(self, steps: int, batch_size: int, seed: int) -> PositionBatches:
        """Return what yields `steps` batches each time it is iterated, other ones each time."""
        return PositionBatches(self, steps, batch_size, np.random.default_rng(seed))

    def draw(self, count: int, generator: np.random.Generator) -> Positions:
        """Draw a batch."""
        places = generator.choice(self.places, count)
        rows = self.rows[places]
        history = self.sequences.windows(rows, self.within[places] - self.max_history, self.max_history)
        drawn = torch.from_numpy(generator.integers(1, self.n_items + 1, (count, self.n_negatives)))
        users = torch.from_numpy(rows + 1)[:, None]
        negatives = torch.where(pairs_are_consumed(self.consumed, users, drawn, self.n_items), PADDING, drawn)
        target = torch.from_numpy(self.sequences.values[places])
        rating = torch.from_numpy(self.ratings[places])
        return Positions(torch.from_numpy(history), torch.cat([target[:, None], negatives], dim=1), rating)


@dataclass
class PositionBatches:
    """Batches of a sampler, drawn as they are asked for."""

    sampler: PositionSampler
    steps: int
    batch_size: int
    generator: np.random.Generator

    def __iter__(self) -> Iterator[Positions]:
        for _ in range(self.steps):
            yield self.sampler.draw(self.batch_size, self.generator)


@dataclass(frozen=True)
class SampledUsers:
    """Some of the evaluated users of one part of a split.

    Attributes:
        histories: (S, H) int64 item rows, left-padded with 0.
        targets: (S,) int64 item rows.
        ratings: (S,) float32, what they gave to the target; NaN where nothing is known.
        unseen: (S, `N_UNSEEN`) int64 item rows, 0 in place of what the user ever consumed.
        popular: (S, `N_POPULAR`) int64 item rows they have not seen, most popular first; 0 where no more are left.
        n_items: size of the catalogue.
    """

    histories: IntArray
    targets: IntArray
    ratings: FloatArray
    unseen: IntArray
    popular: IntArray
    n_items: int


def sample_users(split: Split, ratings: Ratings, max_history: int, count: int) -> tuple[SampledUsers, SampledUsers]:
    """Draw users, the same for validation and test; the draw does not depend on the seed of a training."""
    evaluated = split.evaluated.size
    chosen = np.sort(np.random.default_rng(SEED).permutation(evaluated)[:count])
    unseen = unseen_items(split, N_UNSEEN, SEED)[chosen]
    counts = np.bincount(split.train.values, minlength=split.item_ids.size + 1)[1:]
    popular = np.argsort(-counts, kind="stable") + 1

    def part(histories: Ragged, targets: IntArray, given: FloatArray) -> SampledUsers:
        return SampledUsers(
            histories.left_padded(chosen, max_history),
            targets[chosen],
            given[chosen],
            unseen,
            np.stack([_unseen_head(popular, histories[user]) for user in chosen]),
            int(split.item_ids.size),
        )

    return (
        part(split.validation_histories, split.validation_targets, ratings.validation),
        part(split.test_histories, split.test_targets, ratings.test),
    )


def _unseen_head(ordered: IntArray, seen: IntArray) -> IntArray:
    head = ordered[: N_POPULAR + seen.size]
    left = head[~np.isin(head, seen)][:N_POPULAR]
    return np.pad(left, (0, N_POPULAR - left.size), constant_values=PADDING)
