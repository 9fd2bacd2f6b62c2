"""The networks of a checkpoint that are exported, each with its inputs, and data to calibrate and check it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fuserec.contract import MAX_BATCH, MAX_CANDIDATES, RANKER, TEXT_ENCODER, USER_TOWER
from fuserec.export.histories import Histories, split_histories
from fuserec.models.ranking_model import RankingModel
from fuserec.models.retriever import Retriever, RetrieverConfig
from fuserec.models.text import TextRetriever

Feed = dict[str, NDArray[Any]]

# A ranker sees B * C pairs at once; more users than this go through it in turns.
RANK_BATCH: Final = 8
# Histories and candidates that a ranker is calibrated and checked on; one that reads texts takes seconds for these.
RANK_USERS: Final = 32
CHECKED_CANDIDATES: Final = 20
# Users whose held-out items tell how much a ranker is to be listened to.
WEIGHED_USERS: Final = 2_000
WEIGHED_TEXT_USERS: Final = 100


@dataclass(frozen=True)
class Axis:
    """A dynamic axis: its name, its smallest and largest length, and the length that engines are tuned for."""

    name: str
    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Part:
    """One network to export.

    Attributes:
        name: as the manifest and the server know it.
        module: called with the inputs in their order, int64 all of them.
        inputs: name to axes.
        output: its name.
        shape: the output's dtype and shape, for the manifest.
        calibration: inputs that the int8 ranges are taken from, a dict a batch.
        check: inputs that the graph is compared with the module on.
        max_history: items of a history that it reads, 0 where it reads none.
        order: for a part that scores candidates, which of its numbers orders them.
        weighed_users: likewise, how many users it is weighed on against a retriever.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[Axis, ...]]
    output: str
    shape: str
    calibration: list[Feed]
    check: list[Feed]
    max_history: int
    order: int = 0
    weighed_users: int = 0

    @property
    def signature(self) -> dict[str, str]:
        """Inputs as the manifest lists them: name to dtype and shape."""
        return {
            name: f"int64 ({', '.join(axis.name for axis in axes)}{',' if len(axes) == 1 else ''})"
            for name, axes in self.inputs.items()
        }

    @torch.inference_mode()
    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Run the trained module on one batch."""
        output: Tensor = self.module(*(torch.from_numpy(feed[name]) for name in self.inputs))
        return output.numpy()


def user_tower(module: Retriever, users: pl.DataFrame, items: pl.DataFrame, calibration_users: int) -> Part:
    """Who a user is and what they had -> their vector."""
    batch, length = Axis("B", 1, 8, MAX_BATCH), _history_axis(module.config)
    calibration, check = split_histories(users, items, length.max, calibration_users)
    return Part(
        USER_TOWER,
        module.user_tower,
        {"user": (batch,), "history": (batch, length)},
        "user_vector",
        f"float32 (B, {module.item_vectors().shape[1]})",
        _history_feeds(calibration, MAX_BATCH),
        _history_feeds(check, MAX_BATCH),
        length.max,
    )


def text_encoder(module: TextRetriever) -> Part:
    """Tokens of any text -> a vector among those of the items."""
    limit = module.config.max_tokens
    batch, length = Axis("B", 1, 1, MAX_BATCH), Axis("T", 1, min(32, limit), limit)
    order = torch.randperm(module.config.n_items, generator=torch.Generator().manual_seed(0)) + 1
    feeds = [{"tokens": module.tokens[rows].numpy()} for rows in torch.split(order[: 8 * MAX_BATCH], MAX_BATCH)]
    # With few items both halves are the same.
    half = max(1, len(feeds) // 2)
    return Part(
        TEXT_ENCODER,
        module.encoder,
        {"tokens": (batch, length)},
        "text_vector",
        f"float32 (B, {module.config.dim})",
        feeds[:half],
        feeds[half:] or feeds,
        0,
    )


def ranker(module: RankingModel, users: pl.DataFrame, items: pl.DataFrame, *, reads_texts: bool) -> Part:
    """A user, what they had, and candidates -> what each candidate scores."""
    batch, length = Axis("B", 1, 1, RANK_BATCH), _history_axis(module.config)
    candidates = Axis("C", 1, 200, MAX_CANDIDATES)
    calibration, check = split_histories(users, items, length.max, RANK_USERS)
    rng = np.random.default_rng(0)
    n = min(CHECKED_CANDIDATES, items.height)

    def feeds(histories: Histories) -> list[Feed]:
        return [
            feed | {"candidates": rng.integers(1, items.height + 1, (len(feed["user"]), n))}
            for feed in _history_feeds(histories, RANK_BATCH)
        ]

    return Part(
        RANKER,
        module.rank_tower,
        {"user": (batch,), "history": (batch, length), "candidates": (batch, candidates)},
        "scores",
        "float32 (B, C, 2): click logit, rating",
        feeds(calibration),
        feeds(check),
        length.max,
        order=0 if "click" in module.heads else 1,
        weighed_users=WEIGHED_TEXT_USERS if reads_texts else WEIGHED_USERS,
    )


def _history_axis(config: RetrieverConfig) -> Axis:
    return Axis("L", 1, config.max_history, config.max_history)


def _history_feeds(histories: Histories, size: int) -> list[Feed]:
    return [
        {"user": histories.users[at : at + size], "history": histories.items[at : at + size]}
        for at in range(0, len(histories.users), size)
    ]
