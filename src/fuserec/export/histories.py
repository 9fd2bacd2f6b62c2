"""Real histories of a checkpoint as inputs of the user tower: of users who calibrate, and of others who judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fuserec.export.judging import NOBODY

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


@dataclass(frozen=True)
class HeldOut:
    """Users before what they consumed last.

    Attributes:
        histories: n of them, without the last item.
        seen: n arrays of item ids, all of the history but its last.
        targets: (n,) int64 item ids, the last of each history.
        known: whether these are real users; else the targets are `NOBODY`.
    """

    histories: Histories
    seen: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    known: bool


def split_users(users: pl.DataFrame, calibration_users: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the lines of users who calibrate, at most half of them, and of those who judge: all the others.

    One user alone does both.
    """
    order = np.random.default_rng(0).permutation(users.height)
    half = min(calibration_users, max(1, users.height // 2))
    return order[:half], order[half:] if users.height > 1 else order


def user_inputs(users: pl.DataFrame, items: pl.DataFrame, lines: NDArray[np.int64], max_history: int) -> Histories:
    """Return inputs that show all ways to be called, to calibrate by.

    Every user appears four times: as they are, as somebody unknown with the same history, and as both with only their
    last few items: 1, 2, 4, ... of them, from one user to the next. An activation is widest where attention has little
    to average over, which whole histories never show. Where no user is known, histories are drawn.

    Args:
        users: `users.parquet` of a checkpoint: user_id, history.
        items: `items.parquet` of a checkpoint, in row order.
        lines: of `users`.
        max_history: length that longer histories are cut to.
    """
    if users.is_empty():
        return _made_up(items.height, max_history, 0)
    padded = padded_rows(users["history"].gather(lines).to_list(), items["item_id"].to_numpy(), max_history)
    lengths = 2 ** np.arange(max(1, (max_history - 1).bit_length()))  # those below the longest
    kept = np.resize(lengths, (len(lines), 1))
    short = np.where(np.arange(max_history) < max_history - kept, 0, padded)
    known, unknown = lines + 1, np.zeros_like(lines)
    return Histories(np.concatenate([known, unknown, known, unknown]), np.concatenate([padded, padded, short, short]))


def held_out(users: pl.DataFrame, items: pl.DataFrame, lines: NDArray[np.int64], max_history: int) -> HeldOut:
    """Return users as they were before their last item, which training held out for the test, and that item.

    Users of one item are left out. Where nobody is left, histories are made up, and what comes next is not known.

    Args:
        users: `users.parquet` of a checkpoint: user_id, history.
        items: `items.parquet` of a checkpoint, in row order.
        lines: of `users`.
        max_history: length that longer histories are cut to.
    """
    histories = [history.to_numpy() for history in users["history"].gather(lines)] if len(lines) else []
    asked = [(line, history) for line, history in zip(lines, histories, strict=True) if len(history) > 1]
    if not asked:
        drawn = _made_up(items.height, max_history, 1)
        nothing = [np.empty(0, dtype=np.int64)] * MADE_UP
        return HeldOut(drawn, nothing, np.full(MADE_UP, NOBODY), known=False)
    seen = [history[:-1] for _, history in asked]
    padded = padded_rows(seen, items["item_id"].to_numpy(), max_history)
    rows = np.array([line + 1 for line, _ in asked], dtype=np.int64)
    return HeldOut(Histories(rows, padded), seen, np.array([history[-1] for _, history in asked]), known=True)


def padded_rows(
    histories: Sequence[Sequence[int] | NDArray[np.int64]], item_ids: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
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
