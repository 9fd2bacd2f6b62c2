"""The log of what was recommended: one JSON object a line, an answer each.

    {"user_id": 42, "timestamp": 1700000000, "item_ids": [17, 3, 99], "model_version": "1"}

`user_id` is null where the caller gave none; `timestamp` is seconds since 1970; `item_ids` are best first; -1, which
fills an answer with too few items, is skipped. Other fields may stand beside them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from fuserec.errors import DataError
from fuserec.train.data import LATEST_TIMESTAMP
from fuserec.untrusted.documents import parse_json

SHOWN_SCHEMA: Final = pl.Schema(
    {
        "answer": pl.Int64(), "user_id": pl.Int64(), "item_id": pl.Int64(), "timestamp": pl.Int64(),
        "position": pl.Int64(), "model_version": pl.String(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Malformed:
    """Lines that could not be read.

    Attributes:
        lines: their numbers, from 1, the header of a CSV included.
        reason: what was wrong with the first; empty where there are none.
    """

    lines: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Served:
    """A log, read.

    Attributes:
        shown: a row for each item of each answer to a known user, `SHOWN_SCHEMA`; `position` counts from 1.
        answers: number of answers by model version.
        without_user: answers to nobody in particular, which no action can be matched with.
        malformed: lines that were left out.
    """

    shown: pl.DataFrame
    answers: dict[str, int]
    without_user: int
    malformed: Malformed


def log_answer(
    path: Path, *, user_id: int | None, timestamp: float, item_ids: Sequence[int], model_version: str
) -> None:
    """Append the line of an answer to the log `path`."""
    line = {"user_id": user_id, "timestamp": timestamp, "item_ids": list(item_ids), "model_version": model_version}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_served(path: Path) -> Served:
    """Read a log.

    Raises:
        DataError: if there is no such file, or no line of it can be read.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SHOWN_SCHEMA}
    answers: dict[str, int] = {}
    without_user = 0
    malformed: list[int] = []
    reason = ""
    for number, line in lines_of(path):
        try:
            user_id, timestamp, item_ids, version = _answer(line)
        except ValueError as error:
            reason = reason or str(error)
            malformed.append(number)
            continue
        answers[version] = answers.get(version, 0) + 1
        if user_id is None:
            without_user += 1
            continue
        for position, item_id in enumerate(item_ids, start=1):
            if item_id >= 0:
                row = (number, user_id, item_id, timestamp, position, version)
                for values, value in zip(columns.values(), row, strict=True):
                    values.append(value)
    if not answers:
        what = f"none of its {len(malformed)} lines is an answer: {reason}" if malformed else "empty file"
        raise DataError(f'{path}: {what}; expected lines like {{"user_id": 42, "timestamp": 1700000000, '
                        f'"item_ids": [17, 3], "model_version": "1"}}')  # fmt: skip
    return Served(pl.DataFrame(columns, SHOWN_SCHEMA), answers, without_user, Malformed(tuple(malformed), reason))


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line that is not blank.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a file of JSON lines") from error


def _answer(line: str) -> tuple[int | None, int, list[int], str]:
    try:
        document = parse_json(line)
    except ValueError as error:
        raise ValueError(f"it {error}") from error
    user_id, timestamp, item_ids = (document.get(name) for name in ("user_id", "timestamp", "item_ids"))
    if user_id is not None and not (_is_whole(user_id) and user_id >= 0):
        raise ValueError(f"user_id is {user_id!r}, expected a number from 0 or null")
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not 0 <= timestamp <= LATEST_TIMESTAMP:
        finer = isinstance(timestamp, int | float) and timestamp > LATEST_TIMESTAMP
        hint = ", which these are after 2100: milliseconds?" if finer else ""
        raise ValueError(f"timestamp is {timestamp!r}, expected seconds since 1970{hint}")
    if not isinstance(item_ids, list) or not all(map(_is_whole, item_ids)):
        raise ValueError(f"item_ids is {item_ids!r}, expected a list of numbers")
    return user_id, int(timestamp), item_ids, str(document.get("model_version", "unknown"))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
