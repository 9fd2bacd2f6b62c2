"""Real histories of a checkpoint as inputs of the user tower, split into those that calibrate and those that check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

SHORT = 5
MADE_UP = 64


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
    last few items, so that the ranges of all ways to be called are seen. Where no user is known, histories are drawn.

    Args:
        users: `users.parquet` of a checkpoint: user_id, history.
        items: `items.parquet` of a checkpoint, in row order.
        max_history: Length that longer histories are cut to.
        calibration_users: Users in each of the two sets, at most.
    """
    ids = items["item_id"].to_numpy()
    if users.is_empty():
        return _made_up(len(ids), max_history, 0), _made_up(len(ids), max_history, 1)
    order = np.random.default_rng(0).permutation(users.height)
    half = min(calibration_users, max(1, users.height // 2))
    others = order[half : 2 * half] if users.height > 1 else order
    return _inputs(users, order[:half], ids, max_history), _inputs(users, others, ids, max_history)


def padded_rows(histories: Sequence[Sequence[int]], item_ids: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the last `width` items of each history as rows, newest last, padded with 0 on the left: (n, width) int64.

    Args:
        histories: item ids, all of them known.
        item_ids: (I,) int64, rising; row r + 1 is `item_ids[r]`.
        width: columns.
    """
    padded = np.zeros((len(histories), width), dtype=np.int64)
    for line, history in zip(padded, histories, strict=True):
        known = np.searchsorted(item_ids, history[-width:]) + 1
        line[width - len(known) :] = known
    return padded


def _made_up(n_items: int, max_history: int, seed: int) -> Histories:
    """Return short random histories of people unknown."""
    rng = np.random.default_rng(seed)
    items = rng.integers(1, n_items + 1, (MADE_UP, max_history))
    items[np.arange(max_history) < max_history - rng.integers(1, SHORT + 1, (MADE_UP, 1))] = 0
    return Histories(np.zeros(MADE_UP, dtype=np.int64), items)


def _inputs(users: pl.DataFrame, rows: NDArray[np.int64], item_ids: NDArray[np.int64], max_history: int) -> Histories:
    padded = padded_rows(users["history"][rows].to_list(), item_ids, max_history)
    short = padded.copy()
    short[:, : max(0, max_history - SHORT)] = 0
    return Histories(np.concatenate([rows + 1, np.zeros_like(rows), rows + 1]), np.concatenate([padded, padded, short]))
