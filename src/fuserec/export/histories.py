"""Real histories of a checkpoint as inputs of the user tower, split into those that calibrate and those that check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

SHORT = 5


@dataclass(frozen=True)
class Histories:
    """Inputs of the user tower.

    Attributes:
        users: (n,) int64 rows, 0 for an unknown user.
        items: (n, L) int64 rows, newest last, padded with 0 on the left.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]


def split_histories(
    users: pl.DataFrame, items: pl.DataFrame, max_history: int, calibration_users: int
) -> tuple[Histories, Histories]:
    """Return the histories for calibration and for the parity check, of different users where there are enough.

    Every user appears three times: as they are, as somebody unknown with the same history, and with only their
    last few items, so that the ranges of all ways to be called are seen.

    Args:
        users: `users.parquet` of a checkpoint: user_id, history.
        items: `items.parquet` of a checkpoint, in row order.
        max_history: Length that longer histories are cut to.
        calibration_users: Users in each of the two sets, at most.
    """
    ids = items["item_id"].to_numpy()
    order = np.random.default_rng(0).permutation(users.height)
    half = min(calibration_users, max(1, users.height // 2))
    others = order[half : 2 * half] if users.height > 1 else order
    return _inputs(users, order[:half], ids, max_history), _inputs(users, others, ids, max_history)


def _inputs(users: pl.DataFrame, rows: NDArray[np.int64], item_ids: NDArray[np.int64], max_history: int) -> Histories:
    padded = np.zeros((len(rows), max_history), dtype=np.int64)
    for line, history in zip(padded, users["history"][rows].to_list(), strict=True):
        known = np.searchsorted(item_ids, history[-max_history:]) + 1
        line[max_history - len(known) :] = known
    short = padded.copy()
    short[:, : max(0, max_history - SHORT)] = 0
    return Histories(np.concatenate([rows + 1, np.zeros_like(rows), rows + 1]), np.concatenate([padded, padded, short]))
