"""Items held out of training, to see whether a model finds what it has never seen anybody consume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from fuserec.errors import DataError
from fuserec.train.data import DataSet
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import leave_one_out


@dataclass(frozen=True)
class ColdSplit:
    """A data set without some of its items' interactions, and who consumed those items.

    Attributes:
        warm: the data set to train on: the whole catalogue, but no interaction with a cold item.
        cold: (C,) int64 item rows (1..n_items) that were held out, rising.
        histories: (E rows) warm item rows that a user consumed before the target, oldest first, never empty.
        targets: (E,) int64 item rows: of each user, the last cold item that some warm item comes before.
    """

    warm: DataSet
    cold: IntArray
    histories: Ragged
    targets: IntArray


def hold_out_items(dataset: DataSet, share: float, seed: int) -> ColdSplit:
    """Take a random share of the consumed items out of the interactions.

    A user's history holds warm items alone, as what is cold is unknown; those consumed after the target are left out.

    Raises:
        ValueError: if `share` is not between 0 and 1.
        DataError: if nobody consumed one of the held-out items after another item.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share is {share}; expected 0 < share < 1")
    item_ids = dataset.items["item_id"].to_numpy()
    consumed = np.unique(dataset.interactions["item_id"].to_numpy())
    n_cold = max(1, round(share * consumed.size))
    cold_ids = np.sort(np.random.default_rng(seed).permutation(consumed)[:n_cold])
    cold = np.searchsorted(item_ids, cold_ids).astype(np.int64) + 1

    histories, targets = [], []
    full = leave_one_out(dataset).full
    for sequence in (full[row] for row in range(len(full))):
        is_cold = np.isin(sequence, cold)
        asked = np.flatnonzero(is_cold & (np.cumsum(~is_cold) > 0))
        if asked.size:
            histories.append(sequence[: asked[-1]][~is_cold[: asked[-1]]])
            targets.append(sequence[asked[-1]])
    if not targets:
        raise DataError(f"nobody consumed one of {n_cold} held-out items after another item; expected at least one")
    warm = dataset.interactions.filter(~pl.col("item_id").is_in(cold_ids.tolist()))
    return ColdSplit(DataSet(warm, dataset.items), cold, Ragged.from_rows(histories), np.array(targets, dtype=np.int64))
