"""The networks of a checkpoint that are exported, each with inputs to calibrate, check and judge it by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fuserec.contract import MAX_BATCH, MAX_CANDIDATES, RANKER, TEXT_ENCODER, USER_TOWER
from fuserec.export.histories import HeldOut, Histories, held_out, split_users, user_inputs
from fuserec.export.judging import NOBODY, Feed, Questions, best_candidates, best_items, popular_items
from fuserec.kernels import ItemIndex
from fuserec.models.ranking_model import RankingModel
from fuserec.models.retriever import Retriever, RetrieverConfig
from fuserec.models.text import TextRetriever
from fuserec.tokens import LITERAL_PAD, Tokenizer

# A ranker sees B * C pairs at once; more users than this go through it in turns.
RANK_BATCH: Final = 8
# How many users and titles the gate asks about, at most; what reads texts takes seconds for these.
JUDGED: Final = 2_000
JUDGED_TITLES: Final = 256
JUDGED_BY_TEXT_RANKER: Final = 32
# Users and candidates that a ranker is calibrated on, and candidates that it is judged by; then those of one that reads
# texts.
RANK_USERS: Final = 32
CHECKED_CANDIDATES: Final = 20
JUDGED_CANDIDATES: Final = 100
TEXT_RANK_USERS: Final = 16
CHECKED_TEXT_CANDIDATES: Final = 5
JUDGED_TEXT_CANDIDATES: Final = 20
# Users whose held-out items tell how much a ranker is to be listened to.
WEIGHED_USERS: Final = 2_000
WEIGHED_TEXT_USERS: Final = 100
# What a caller of a graph must know of its numbers: they are rows, not ids.
VALUES: Final = {
    "user": "row r is line r - 1 of users.parquet; 0 for somebody unknown",
    "history": "row r is line r - 1 of items.parquet; newest right, filled up with 0 on the left",
    "candidates": "row r is line r - 1 of items.parquet; filled up with 0 on the right",
}
# Batches that a graph is compared with its module on; the largest is what the part takes at once.
PARITY_BATCHES: Final = (1, 7, MAX_BATCH)


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
        calibration: inputs that the ranges of activations are taken from, a dict a batch.
        check: inputs that the graph is compared with the module on: few and many, short and long.
        questions: what the graph is judged by.
        max_history: items of a history that it reads, 0 where it reads none.
        order: for a part that scores candidates, which of its numbers orders them.
        weighed_users: likewise, how many users it is weighed on against a retriever.
        values: what the numbers of each input are, for who reads the graph.
        notes: whose numbers they are, likewise.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[Axis, ...]]
    output: str
    shape: str
    calibration: list[Feed]
    check: list[Feed]
    questions: Questions
    max_history: int
    order: int = 0
    weighed_users: int = 0
    values: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def signature(self) -> dict[str, str]:
        """Inputs as the manifest lists them: name to dtype and shape."""
        return {
            name: f"int64 ({', '.join(axis.name for axis in axes)}{',' if len(axes) == 1 else ''})"
            for name, axes in self.inputs.items()
        }

    @property
    def title(self) -> str:
        """Its name, for people."""
        return self.name.replace("_", " ")

    @torch.inference_mode()
    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Run the trained module on one batch."""
        output: Tensor = self.module(*(torch.from_numpy(feed[name]) for name in self.inputs))
        return output.numpy()


def user_tower(
    module: Retriever, users: pl.DataFrame, items: pl.DataFrame, index: ItemIndex, calibration_users: int
) -> Part:
    """Who a user is and what they had -> their vector."""
    batch, length = Axis("B", 1, 8, MAX_BATCH), _history_axis(module.config)
    calibrating, judged = split_users(users, calibration_users)
    asked = held_out(users, items, judged[:JUDGED], length.max)
    feeds = _history_feeds(asked.histories, MAX_BATCH)
    seen = [asked.seen[at : at + MAX_BATCH] for at in range(0, len(asked.seen), MAX_BATCH)]
    about = f"what {len(asked.seen):,} users consumed next" if asked.known else "items for made-up histories"
    return Part(
        USER_TOWER,
        module.user_tower,
        {"user": (batch,), "history": (batch, length)},
        "user_vector",
        f"float32 (B, {index.dim})",
        _history_feeds(user_inputs(users, items, calibrating, length.max), MAX_BATCH),
        _cut({"user": asked.histories.users, "history": asked.histories.items}, MAX_BATCH, length, "history"),
        Questions(
            about,
            feeds,
            asked.targets,
            best_items(index, seen),
            popular_items(items["item_id"].to_numpy(), items["count"].to_numpy(), asked.seen),
        ),
        length.max,
        values={name: VALUES[name] for name in ("user", "history")},
        notes=_notes(users, items),
    )


def text_encoder(module: TextRetriever, items: pl.DataFrame, index: ItemIndex, tokenizer: Tokenizer) -> Part:
    """Tokens of any text -> a vector among those of the items."""
    limit = module.config.max_tokens
    batch, length = Axis("B", 1, 1, MAX_BATCH), Axis("T", 1, min(32, limit), limit)
    order = np.random.default_rng(0).permutation(items.height)
    half = max(1, min(4 * MAX_BATCH, items.height // 2))
    # With one item both sets are the same.
    asked = order[half:][:JUDGED_TITLES] if items.height > 1 else order
    texts = module.tokens[torch.from_numpy(order[:half] + 1)]
    tokens = tokenizer(items["title"].gather(asked).to_list())
    feeds = [{"tokens": tokens[at : at + MAX_BATCH]} for at in range(0, len(tokens), MAX_BATCH)]
    return Part(
        TEXT_ENCODER,
        module.encoder,
        {"tokens": (batch, length)},
        "text_vector",
        f"float32 (B, {module.config.dim})",
        [{"tokens": chunk.numpy()} for chunk in torch.split(texts, MAX_BATCH)],
        _cut({"tokens": module.tokens[torch.from_numpy(asked + 1)].numpy()}, MAX_BATCH, length, "tokens"),
        Questions(
            f"which of {items.height:,} items has this title, for {len(asked):,} titles",
            feeds,
            items["item_id"].gather(asked).to_numpy(),
            best_items(index, [[np.empty(0, dtype=np.int64)] * len(feed["tokens"]) for feed in feeds]),
        ),
        0,
        values={
            "tokens": f"tokens of tokenizer.json, filled up with {module.encoder.pad_id} on the right; "
            f"{LITERAL_PAD} is that token where a text holds it"
        },
        notes={"padding": str(module.encoder.pad_id), "query_prompt": module.config.query_prompt},
    )


def ranker(
    module: RankingModel, users: pl.DataFrame, items: pl.DataFrame, calibration_users: int, *, reads_texts: bool
) -> Part:
    """A user, what they had, and candidates -> what each candidate scores."""
    batch, length = Axis("B", 1, 1, RANK_BATCH), _history_axis(module.config)
    candidates = Axis("C", 1, 200, MAX_CANDIDATES)
    calibrating, judged = split_users(users, min(calibration_users, TEXT_RANK_USERS if reads_texts else RANK_USERS))
    asked = held_out(users, items, judged[: JUDGED_BY_TEXT_RANKER if reads_texts else JUDGED], length.max)
    rng = np.random.default_rng(0)
    few = min(CHECKED_TEXT_CANDIDATES if reads_texts else CHECKED_CANDIDATES, items.height)
    n_candidates = min(JUDGED_TEXT_CANDIDATES if reads_texts else JUDGED_CANDIDATES, items.height)

    def drawn(feeds: list[Feed], count: int) -> list[Feed]:
        # Each candidate once: of twins in a list nobody could say which one stayed.
        return [
            feed | {"candidates": np.stack([1 + rng.choice(items.height, count, replace=False) for _ in feed["user"]])}
            for feed in feeds
        ]

    order = 0 if "click" in module.heads else 1
    feeds = drawn(_history_feeds(asked.histories, RANK_BATCH), n_candidates)
    targets = _place_targets(feeds, asked, items, rng)
    check = {"user": asked.histories.users, "history": asked.histories.items}
    return Part(
        RANKER,
        module.rank_tower,
        {"user": (batch,), "history": (batch, length), "candidates": (batch, candidates)},
        "scores",
        "float32 (B, C, 2): click logit, rating",
        drawn(_history_feeds(user_inputs(users, items, calibrating, length.max), RANK_BATCH), few),
        drawn(_cut(check, RANK_BATCH, length, "history"), few),
        Questions(
            f"which of {n_candidates} candidates {len(asked.seen):,} users consumed next",
            feeds,
            targets,
            best_candidates(feeds, order),
        ),
        length.max,
        order=order,
        weighed_users=WEIGHED_TEXT_USERS if reads_texts else WEIGHED_USERS,
        values={name: VALUES[name] for name in ("user", "history", "candidates")},
        notes=_notes(users, items),
    )


def _notes(users: pl.DataFrame, items: pl.DataFrame) -> dict[str, str]:
    """Say which ids the rows stand for, without holding millions of them."""
    told = {"padding": "0"}
    for name, table in (("users", users), ("items", items)):
        ids = table[f"{name[:-1]}_id"].to_numpy().astype("<i8")
        told[f"n_{name}"] = str(ids.size)
        told[f"{name[:-1]}_ids_sha256"] = hashlib.sha256(ids.tobytes()).hexdigest()
    return told


def _place_targets(
    feeds: list[Feed], asked: HeldOut, items: pl.DataFrame, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Put what each user consumed next among their candidates, in place; return the rows of these, (n,)."""
    if not asked.known:
        return np.full(len(asked.targets), NOBODY)
    rows = np.searchsorted(items["item_id"].to_numpy(), asked.targets) + 1
    at = 0
    for feed in feeds:
        table = feed["candidates"]
        here = rows[at : at + len(table)]
        table[table == here[:, None]] = 0  # drawn by chance, it would stand there twice; row 0 is nothing
        table[np.arange(len(table)), rng.integers(0, table.shape[1], len(table))] = here
        at += len(table)
    return rows


def _history_axis(config: RetrieverConfig) -> Axis:
    return Axis("L", 1, config.max_history, config.max_history)


def _history_feeds(histories: Histories, size: int) -> list[Feed]:
    return [
        {"user": histories.users[at : at + size], "history": histories.items[at : at + size]}
        for at in range(0, len(histories.users), size)
    ]


def _cut(feed: Feed, largest: int, length: Axis, cut: str) -> list[Feed]:
    """Return few and many rows of some inputs, one of which is cut to its shortest and its longest."""
    keep_end = cut == "history"  # histories are padded on the left, texts on the right
    found = []
    for rows in sorted({min(batch, largest) for batch in PARITY_BATCHES}):
        chosen = {name: np.resize(values, (rows, *values.shape[1:])) for name, values in feed.items()}
        for columns in sorted({length.min, length.max}):
            values = chosen[cut]
            found.append(chosen | {cut: values[:, -columns:] if keep_end else values[:, :columns]})
    return found
