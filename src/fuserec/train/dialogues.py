"""Conversations to learn replies from: the conversation so far is what a user is elsewhere, the replies are the items.

dialogues.parquet or .csv   dialogue_id int64, turn int64, speaker, text
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from fuserec.errors import DataError
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.tables import Column, read_table

DIALOGUE_COLUMNS: Final = {
    "dialogue_id": Column(pl.Int64()),
    "turn": Column(pl.Int64()),
    "speaker": Column(pl.String()),
    "text": Column(pl.String()),
}
# A part to learn from, one to validate on, one to test on.
MIN_OPENINGS: Final = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dialogues:
    """Conversations, turn by turn.

    Attributes:
        turns: dialogue_id, turn int64, speaker, text str; sorted by dialogue and turn.

    Raises:
        DataError: if a turn stands twice, or a text is empty.
    """

    turns: pl.DataFrame

    def __post_init__(self) -> None:
        repeated = self.turns.filter(pl.struct("dialogue_id", "turn").is_duplicated())
        if repeated.height:
            dialogue, turn = repeated.row(0)[:2]
            raise DataError(
                f"dialogues: {repeated.height} rows share dialogue_id and turn with another, such as turn {turn} of "
                f"dialogue {dialogue}; expected one row a turn"
            )
        empty = self.turns.filter(pl.col("text").str.strip_chars() == "")
        if empty.height:
            dialogue, turn = empty.row(0)[:2]
            raise DataError(
                f"dialogues: {empty.height} texts are empty, such as turn {turn} of dialogue {dialogue}; expected text"
            )


def read_dialogues(path: Path) -> Dialogues:
    """Read a data folder of conversations.

    Conversations that say the same as an earlier one are dropped, and counted in the log.

    Raises:
        DataError: if the folder or the file is missing, or cannot be read as described above.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected one with dialogues, as .parquet or .csv")
    turns = read_table(path, "dialogues", DIALOGUE_COLUMNS).sort("dialogue_id", "turn", maintain_order=True)
    distinct = distinct_dialogues(Dialogues(turns).turns)
    n_dialogues, n_distinct = turns["dialogue_id"].n_unique(), distinct["dialogue_id"].n_unique()
    if n_distinct < n_dialogues:
        logger.info("%s: dropped %d of %d dialogues, which repeat another", path, n_dialogues - n_distinct, n_dialogues)
    return Dialogues(distinct)


def distinct_dialogues(turns: pl.DataFrame) -> pl.DataFrame:
    """Keep the first of all dialogues whose speakers say the same; `turns` is sorted by dialogue and turn."""
    whole = turns.group_by("dialogue_id", maintain_order=True).agg("speaker", pl.col("text").str.strip_chars())
    kept = whole.unique(["speaker", "text"], keep="first", maintain_order=True)
    return turns.join(kept.select("dialogue_id"), on="dialogue_id", how="semi", maintain_order="left")


@dataclass(frozen=True)
class Exchanges:
    """What was answered to what.

    Attributes:
        contexts: (C,) conversations so far, a turn a line.
        openings: (C,) int64, equal for contexts of conversations that begin with the same text.
        replies: (I,) distinct replies; item row = index + 1.
        counts: (I,) int64, how often each was given.
        answers: (C rows) item rows of the replies that each context had, each once.
    """

    contexts: list[str]
    openings: IntArray
    replies: list[str]
    counts: IntArray
    answers: Ragged


def exchanges_of(dialogues: Dialogues, speaker: str, max_turns: int) -> Exchanges:
    """Collect the replies of a speaker with the turns before them.

    Args:
        dialogues: the conversations.
        speaker: who answers; an opening turn of theirs answers nothing and is no reply.
        max_turns: turns of a context, the last ones.

    Raises:
        DataError: if the speaker never answers anything.
    """
    contexts: dict[tuple[int, str], int] = {}
    replies: dict[str, int] = {}
    openings: dict[str, int] = {}
    answers: list[dict[int, None]] = []
    counts: list[int] = []
    grouped = dialogues.turns.group_by("dialogue_id", maintain_order=True).agg("speaker", "text")
    for speakers, texts in zip(grouped["speaker"].to_list(), grouped["text"].to_list(), strict=True):
        texts = [text.strip() for text in texts]
        opening = openings.setdefault(" ".join(texts[0].casefold().split()), len(openings))
        for turn in range(1, len(texts)):
            if speakers[turn] != speaker:
                continue
            so_far = "\n".join(texts[max(0, turn - max_turns) : turn])
            context = contexts.setdefault((opening, so_far), len(contexts))
            reply = replies.setdefault(texts[turn], len(replies))
            if context == len(answers):
                answers.append({})
            if reply == len(counts):
                counts.append(0)
            answers[context][reply + 1] = None
            counts[reply] += 1
    if not contexts:
        known = ", ".join(map(repr, dialogues.turns["speaker"].unique().sort().head(5)))
        raise DataError(f"dialogues: {speaker!r} answers nothing; the speakers are {known}; expected one who answers")
    return Exchanges(
        contexts=[text for _, text in contexts],
        openings=np.array([opening for opening, _ in contexts], dtype=np.int64),
        replies=list(replies),
        counts=np.array(counts, dtype=np.int64),
        answers=Ragged.from_rows(answers),
    )


@dataclass(frozen=True)
class ContextSplit:
    """Which contexts are learned from and which are asked about, as int64 indices into `Exchanges.contexts`."""

    train: IntArray
    validation: IntArray
    test: IntArray


def split_contexts(exchanges: Exchanges, held_out: float, seed: int) -> ContextSplit:
    """Hold conversations out whole, `held_out` of them for validation and as many for the test.

    Conversations that begin with the same text stay together: a test question is one that training has not seen.

    Raises:
        DataError: if fewer than three different texts begin a conversation.
    """
    names = np.unique(exchanges.openings)
    if names.size < MIN_OPENINGS:
        raise DataError(
            f"dialogues: {names.size} different texts begin a conversation that is answered; expected at least "
            f"{MIN_OPENINGS}: one to learn from, one to validate on, one to test on"
        )
    shuffled = np.random.default_rng(seed).permutation(names)
    count = min(max(1, round(held_out * names.size)), (names.size - 1) // 2)
    parts = (shuffled[2 * count :], shuffled[:count], shuffled[count : 2 * count])
    return ContextSplit(*(np.flatnonzero(np.isin(exchanges.openings, part)) for part in parts))
