"""What rankers learn from: windows of users' sequences with the ratings of what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuserec.models.retriever import PADDING
from fuserec.train.data import DataSet
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import Split
from fuserec.train.windows import WindowLoader

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Ratings:
    """Ratings beside the items of a split, NaN where there is none.

    Attributes:
        train: (N,) float32, of each value of `Split.train`.
        validation: (E,) float32, of the validation targets.
        test: (E,) float32, of the test targets.
    """

    train: FloatArray
    validation: FloatArray
    test: FloatArray

    @property
    def exist(self) -> bool:
        """Whether there is any to learn from."""
        return bool(np.isfinite(self.train).any())

    @property
    def mean(self) -> float:
        """Mean of those to learn from."""
        return float(np.nanmean(self.train, dtype=np.float64))

    @property
    def scale(self) -> float:
        """Standard deviation of those to learn from; 1 if they are all alike."""
        return float(np.nanstd(self.train, dtype=np.float64)) or 1.0


def split_ratings(dataset: DataSet, split: Split) -> Ratings:
    """Put the ratings of a data set beside the split that `leave_one_out` made of it."""
    full = _in_order_of_split(dataset)
    train = _places(split.full).without_last(split.full.lengths - split.train.lengths)
    last = split.full.offsets[split.evaluated + 1] - 1
    return Ratings(full[train.values], full[last - 1], full[last])


def _in_order_of_split(dataset: DataSet) -> FloatArray:
    interactions = dataset.interactions
    if "rating" not in interactions.columns:
        return np.full(interactions.height, np.nan, np.float32)
    ordered = interactions.sort("user_id", "timestamp", maintain_order=True)
    return ordered["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy()


def _places(sequences: Ragged) -> Ragged:
    """Return rows of places in the flat array in place of the values that are there."""
    return Ragged(np.arange(sequences.values.size), sequences.offsets)


class RatedBatch(NamedTuple):
    """One training step.

    Attributes:
        user: (B,) int64 user rows.
        history: (B, L) int64 item rows, 0 outside the user's sequence.
        target: (B, L) int64 the item row that follows `history` at each position, 0 where there is none to learn.
        rating: (B, L) float32 what the user gave to the target, NaN where nothing is known.
    """

    user: Tensor
    history: Tensor
    target: Tensor
    rating: Tensor


class RatedWindows:
    """The batches of `WindowLoader`, with the ratings of the targets."""

    def __init__(self, sequences: Ragged, ratings: FloatArray, max_history: int, batch_size: int, seed: int) -> None:
        """Take a rating for each value of `sequences`; see `WindowLoader`."""
        # Windows of places, from 1 as 0 is what lies outside: one cut then gives items and ratings.
        places = Ragged(_places(sequences).values + 1, sequences.offsets)
        self.windows = WindowLoader(places, max_history, batch_size, seed)
        self.items = torch.from_numpy(np.insert(sequences.values, 0, PADDING))
        self.ratings = torch.from_numpy(np.insert(ratings, 0, np.nan))

    @property
    def generator(self) -> np.random.Generator:
        """The source of the cuts and of the order."""
        return self.windows.generator

    @generator.setter
    def generator(self, generator: np.random.Generator) -> None:
        self.windows.generator = generator

    def __iter__(self) -> Iterator[RatedBatch]:
        for user, history, target in self.windows:
            yield RatedBatch(user, self.items[history], self.items[target], self.ratings[target])


def prefixes(history: Tensor, window: Tensor, position: Tensor) -> Tensor:
    """Return what precedes some positions of a batch, left-padded.

    Args:
        history: (B, L) int64 item rows.
        window: (N,) int64, rows of `history`.
        position: (N,) int64, columns of `history`.

    Returns:
        (N, L) int64, the last column being `history[window, position]`.
    """
    length = history.shape[1]
    column = position[:, None] + torch.arange(1 - length, 1, device=history.device)
    rows = history[window[:, None], column.clamp(min=0)]
    return torch.where(column >= 0, rows, PADDING)


def unseen_items(split: Split, count: int, seed: int) -> IntArray:
    """Draw `count` item rows for each evaluated user: (E, count) int64, 0 in place of what the user ever consumed."""
    n_items = split.item_ids.size
    drawn = np.random.default_rng(seed).integers(1, n_items + 1, (split.evaluated.size, count))
    consumed = (split.full.row_of_value * (n_items + 1)) + split.full.values
    return np.where(np.isin(split.evaluated[:, None] * (n_items + 1) + drawn, consumed), 0, drawn)
