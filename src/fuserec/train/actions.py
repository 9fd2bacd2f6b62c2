"""What users did, out of CSV, Parquet or JSON lines, as the interactions they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from fuserec.errors import DataError
from fuserec.id_map import ORIGINAL, IdMap
from fuserec.train.cells import numbers, texts
from fuserec.train.columns import INTERACTION_ROLES, Role, choose_columns
from fuserec.train.data import LATEST_TIMESTAMP
from fuserec.train.identities import RAW, number, original_ids, raw_ids
from fuserec.train.served import Malformed, lines_of
from fuserec.train.sources import CSV_ENDINGS, reading, scan
from fuserec.train.times import read_times
from fuserec.untrusted.documents import parse_json

JSON_ENDINGS: Final = (".jsonl", ".ndjson")
_ROLES: Final = {**INTERACTION_ROLES, "action": Role(("action", "event", "eventtype", "type"))}
_LINE: Final = "line of the file"  # no column that could play a part is named so


@dataclass(frozen=True)
class Actions:
    """Actions, read.

    Attributes:
        table: user_id, item_id, timestamp int64, rating float32 (null where there is none); sorted by timestamp.
        malformed: lines that were left out.
        ids: the numbers of users and items by "user" and "item", new ones included; empty where ids are numbers.
    """

    table: pl.DataFrame
    malformed: Malformed
    ids: dict[str, IdMap]


def read_actions(path: Path, *, only: Sequence[str], ids: Mapping[str, IdMap]) -> Actions:
    """Read a file of actions; columns are guessed from their names.

    Args:
        path: user, item, time, and optionally rating and action.
        only: the values of the column action that count; all, where there are none.
        ids: the numbers of the file's ids, as `identities.number` gives them; without, ids are numbers.

    Raises:
        DataError: if the file cannot be read, or has no usable row.
    """
    source, unread = _open(path)
    columns = choose_columns(path, [name for name in source.collect_schema() if name != _LINE], _ROLES, {})
    if only and "action" not in columns:
        raise DataError(f"{path}: no column is named like the action; --action needs one")
    parts = {"user": raw_ids(columns["user"]), "item": raw_ids(columns["item"])}
    if "rating" in columns:
        rating = numbers(texts(pl.col(columns["rating"]))).cast(pl.Float32)
        parts["rating"] = pl.when(rating.is_finite()).then(rating)
    if "action" in columns:
        parts["action"] = texts(pl.col(columns["action"]))
    with reading(path):
        times = read_times(source, columns["time"], f"{path}: column {columns['time']!r}")
        seconds = pl.when(~times.is_another_unit).then(times.seconds)
        table = source.select(pl.col(_LINE).alias("line"), timestamp=seconds, **parts).collect(engine="streaming")
    if "rating" not in table.columns:
        table = table.with_columns(rating=pl.lit(None, pl.Float32))
    extended = {}
    for kind in ("user", "item"):
        dtype, where = source.collect_schema()[columns[kind]], f"{path}: column {columns[kind]!r}"
        found = original_ids(table[kind], dtype, where)
        if kind in ids:
            extended[kind] = number(found[ORIGINAL], f"{kind}s", ids[kind])
            found = found.join(extended[kind].table, on=ORIGINAL)
        else:
            found = found.with_columns(pl.col(ORIGINAL).cast(pl.Int64, strict=False).alias(f"{kind}_id"))
        table = table.join(
            found.select(RAW, f"{kind}_id"), left_on=kind, right_on=RAW, how="left", maintain_order="left"
        )
    usable = (pl.col("user_id") >= 0) & (pl.col("item_id") >= 0) & pl.col("timestamp").is_between(0, LATEST_TIMESTAMP)
    usable = usable.fill_null(False)
    malformed = _malformed(table.filter(~usable), unread)
    table = table.filter(usable)
    if table.is_empty():
        what = (
            f"none of its {len(malformed.lines)} rows is an action: {malformed.reason}"
            if malformed.lines
            else "no rows"
        )
        raise DataError(f"{path}: {what}; expected user ids and item ids that are numbers (--original-ids translates "
                        "those from before an import) and times")  # fmt: skip
    if only:
        table = table.filter(pl.col("action").is_in(list(only)))
        if table.is_empty():
            raise DataError(f"{path}: no action is {' or '.join(only)}; expected at least one")
    names = ("user_id", "item_id", "timestamp", "rating")
    return Actions(table.sort("timestamp", maintain_order=True).select(names), malformed, extended)


def _open(path: Path) -> tuple[pl.LazyFrame, Malformed]:
    """Open the file with the column `_LINE`; JSON lines that are no objects are left out and returned."""
    if path.suffix.lower() not in JSON_ENDINGS:
        first = 2 if path.suffix.lower() in CSV_ENDINGS else 1  # a CSV begins with its header
        return scan(path).with_row_index(_LINE, offset=first), Malformed()
    rows: list[dict[str, Any]] = []
    broken: list[int] = []
    for line_number, line in lines_of(path):
        try:
            document = parse_json(line)
        except ValueError:
            broken.append(line_number)
            continue
        rows.append({_LINE: line_number, **{name: _text(value) for name, value in document.items()}})
    if not rows:
        raise DataError(f"{path}: none of its {len(broken)} lines is a JSON object; expected one action a line")
    schema = {name: pl.String for row in rows for name in row} | {_LINE: pl.UInt32}
    return pl.LazyFrame(rows, schema), Malformed(tuple(broken), "it is not a JSON object" if broken else "")


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _malformed(unusable: pl.DataFrame, unread: Malformed) -> Malformed:
    if unusable.is_empty():
        return unread
    first = unusable.row(0, named=True)
    reason = f"user {first['user']!r}, item {first['item']!r}, time read as {first['timestamp']!r}"
    return Malformed(tuple(sorted([*unread.lines, *unusable["line"].to_list()])), unread.reason or reason)
