"""A user's own files as a data folder: columns found, ids numbered, times in seconds, bad rows treated and counted.

Files are read lazily and more than once, so that memory is needed for ids, times and ratings, not for texts.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from fuserec.errors import DataError
from fuserec.files import replacing_folder
from fuserec.train.columns import INTERACTION_ROLES, ITEM_ROLES, USER_ROLES, Role, choose_columns
from fuserec.train.data import (
    LATEST_TIMESTAMP,
    MAX_TEXT_CHARS,
    MAX_TITLE_CHARS,
    MIN_INTERACTIONS,
    UNKNOWN_CATEGORY,
    refuse_foreign,
)
from fuserec.train.identities import ORIGINAL, number, originals
from fuserec.train.sources import cut, reading, scan
from fuserec.train.tables import LIST_SEPARATOR
from fuserec.train.times import Times, read_times, texts
from fuserec.untrusted.tables import read_table

# A row of items may be as large as its texts are allowed to be, and a group of rows is held in memory.
ITEMS_ROW_GROUP: Final = 10_000


@dataclass(frozen=True)
class Imported:
    """What was made of the files.

    Attributes:
        columns: by file ("interactions", "items", "users"), the column by the part that it was taken for.
        times: how times were written.
        rows: of the interactions file.
        interactions: rows that were kept.
        users: known by an interaction.
        items: of the catalogue, with an interaction or without.
        first: the earliest time, ISO 8601, UTC.
        last: the latest time.
        treated: how many of what was treated as docs/your-own-data.md says, by the name it has there.
    """

    columns: dict[str, dict[str, str]]
    times: str
    rows: int
    interactions: int
    users: int
    items: int
    first: str
    last: str
    treated: dict[str, int]


@dataclass(frozen=True)
class _Source:
    """A file, opened, and the parts its columns play."""

    path: Path
    table: pl.LazyFrame
    columns: dict[str, str]

    @classmethod
    def open(cls, path: Path, roles: Mapping[str, Role], told: Mapping[str, str]) -> _Source:
        table = scan(path)
        return cls(path, table, choose_columns(path, table.collect_schema().names(), roles, told))

    def collect(self, *columns: pl.Expr, **named: pl.Expr) -> pl.DataFrame:
        with reading(self.path):
            return self.table.select(*columns, **named).collect(engine="streaming")

    def row(self, **named: pl.Expr) -> dict[str, Any]:
        return self.collect(**named).row(0, named=True)


def import_folder(
    interactions: Path,
    out: Path,
    *,
    items: Path | None = None,
    users: Path | None = None,
    told: Mapping[str, str] | None = None,
    ids: Path | None = None,
    on_step: Callable[[str], None] = lambda step: None,
) -> Imported:
    """Write the data folder `out` from a user's own files; it appears whole or not at all.

    Args:
        interactions: who consumed what and when, Parquet or CSV.
        out: the folder; an older data folder is replaced, anything else is refused.
        items: what the items are; without it their titles are their ids.
        users: categories of users.
        told: column by part (user, item, time, rating, title, text, category, year) where the guess from the names
            is not right; an empty name says that there is none.
        ids: a data folder written by an earlier import, whose numbers are kept.
        on_step: told what is about to be done.

    Raises:
        DataError: if a file cannot be read, a column is not found, a time makes no sense, or nothing is left.
    """
    told = told or {}
    refuse_foreign(out)
    source = _Source.open(interactions, INTERACTION_ROLES, told)
    catalogue = None if items is None else _Source.open(items, ITEM_ROLES, _told_of(items, "item", told))
    people = None if users is None else _Source.open(users, USER_ROLES, _told_of(users, "user", told))

    on_step(f"reading the ids of {interactions}")
    with reading(interactions):
        times = read_times(source.table, source.columns["time"])
    n_rows = _check_times(source, times)
    user_ids = number(_ids(source, "user"), "user_id", None if ids is None else known_ids(ids, "user"))
    item_originals = [_ids(source, "item")] + ([] if catalogue is None else [_ids(catalogue, "item")])
    item_ids = number(pl.concat(item_originals), "item_id", None if ids is None else known_ids(ids, "item"))

    on_step("reading the interactions")
    table, treated = _interactions(source, times, user_ids, item_ids)
    if table.is_empty():
        why = ", ".join(f"{count} {name}" for name, count in treated.items() if count)
        raise DataError(f"{interactions}: none of its {n_rows} rows is left ({why}); expected at least one")
    consumed = item_ids.join(table, on="item_id", how="semi", maintain_order="left")
    with replacing_folder(out) as folder:
        table.write_parquet(folder / "interactions.parquet")
        on_step("writing the items")
        rows, counts = _items(catalogue, item_ids, consumed)
        with reading(interactions if items is None else items):
            rows.sink_parquet(folder / "items.parquet", row_group_size=ITEMS_ROW_GROUP)
        if people is not None:
            _users(people, user_ids).write_parquet(folder / "users.parquet")
        user_ids.write_parquet(folder / "ids_users.parquet")
        item_ids.write_parquet(folder / "ids_items.parquet")
        n_items = int(pl.scan_parquet(folder / "items.parquet").select(pl.len()).collect().item())
        per_user = table["user_id"].value_counts()["count"]
        report = Imported(
            columns={
                name: file.columns
                for name, file in {"interactions": source, "items": catalogue, "users": people}.items()
                if file is not None
            },
            times=times.kind,
            rows=n_rows,
            interactions=table.height,
            users=per_user.len(),
            items=n_items,
            first=_iso(table["timestamp"][0]),
            last=_iso(table["timestamp"][-1]),
            treated={
                **treated,
                **counts,
                "items_never_consumed": n_items - consumed.height,
                "users_not_evaluated": int((per_user < MIN_INTERACTIONS).sum()),
            },
        )
        source_note = {"source": "fuserec data import", **dataclasses.asdict(report)}
        (folder / "source.json").write_text(json.dumps(source_note, indent=2) + "\n", encoding="utf-8")
    return report


def _told_of(path: Path, role: str, told: Mapping[str, str]) -> dict[str, str]:
    """What the user said of the interactions holds here only where the column is here too."""
    found = scan(path).collect_schema()
    return {part: name for part, name in told.items() if part != role or name in found}


def known_ids(folder: Path, kind: str) -> pl.DataFrame:
    """Return the numbers that an import gave: `user_id` or `item_id` int64 by its kind, and `original` str.

    Raises:
        DataError: if the folder has none.
    """
    path = folder / f"ids_{kind}s.parquet"
    if not path.is_file():
        raise DataError(f"{path} is missing; expected a folder written by `fuserec data import`")
    return read_table(path, DataError, columns={f"{kind}_id": pl.Int64(), ORIGINAL: pl.String()})


def _ids(source: _Source, role: str) -> pl.Series:
    return source.collect(originals(source.columns[role]).unique())[ORIGINAL]


def _check_times(source: _Source, times: Times) -> int:
    """Return the number of rows, or refuse the file for a time that cannot be meant."""
    raw = texts(pl.col(source.columns["time"]))
    is_unreadable = raw.is_not_null() & times.seconds.is_null()
    is_absurd = ~times.seconds.is_between(0, LATEST_TIMESTAMP)
    found = source.row(
        rows=pl.len(), unreadable=is_unreadable.sum(), unread=raw.filter(is_unreadable).first(),
        absurd=is_absurd.sum(), out_of_range=raw.filter(is_absurd).first(),
    )  # fmt: skip
    where = f"{source.path}: column {source.columns['time']!r}"
    if not found["rows"]:
        raise DataError(f"{source.path}: no rows; expected at least one")
    if found["unreadable"]:
        raise DataError(
            f"{where} has {found['unreadable']} values like {found['unread']!r}; expected {times.kind}, as most are"
        )
    if found["absurd"]:
        raise DataError(
            f"{where} has {found['absurd']} times that are not between 1970 and 2100, such as "
            f"{found['out_of_range']!r}, read as {times.kind}"
        )
    return int(found["rows"])


def _interactions(
    source: _Source, times: Times, user_ids: pl.DataFrame, item_ids: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the interactions sorted by time, ties in the order of the file, and what was treated."""
    rating = source.columns.get("rating")
    columns = {
        "user": originals(source.columns["user"]),
        "item": originals(source.columns["item"]),
        "timestamp": times.seconds,
    }
    if rating is not None:
        columns["rating"] = pl.col(rating).cast(pl.Float32, strict=False)
    with reading(source.path):
        table = (
            source.table.select(**columns)
            .with_row_index("row")
            .join(user_ids.lazy(), left_on="user", right_on=ORIGINAL, how="left")
            .join(item_ids.lazy(), left_on="item", right_on=ORIGINAL, how="left")
            .drop("user", "item")
            .collect(engine="streaming")
            .sort("row")
        )
    treated = {
        "rows_without_user": table["user_id"].null_count(),
        "rows_without_item": table["item_id"].null_count(),
        "rows_without_time": table["timestamp"].null_count(),
    }
    table = table.drop_nulls(["user_id", "item_id", "timestamp"])
    if rating is not None:
        rated = table.filter(pl.col("rating").is_finite())  # null is not finite either
        treated["rows_without_rating"] = table.height - rated.height
        table = rated
    treated["rows_out_of_order"] = int((table["timestamp"].diff() < 0).sum())
    names = ["user_id", "item_id", "timestamp", *(["rating"] if rating is not None else [])]
    unique = table.sort("timestamp", maintain_order=True).select(names).unique(maintain_order=True)
    treated["duplicate_rows"] = table.height - unique.height
    return unique, treated


def _items(
    catalogue: _Source | None, item_ids: pl.DataFrame, consumed: pl.DataFrame
) -> tuple[pl.LazyFrame, dict[str, int]]:
    """Return the rows of items.parquet, not read yet, and what was treated."""
    if catalogue is None:
        return consumed.lazy().select("item_id", title=ORIGINAL), {}
    columns = catalogue.columns
    ids = catalogue.collect(originals(columns["item"])).with_row_index("row")
    named = ids.drop_nulls(ORIGINAL)
    first = named.unique(ORIGINAL, keep="first", maintain_order=True).join(item_ids, on=ORIGINAL, maintain_order="left")
    added = consumed.join(first, on="item_id", how="anti", maintain_order="left")
    counts = {
        "item_rows_without_id": ids.height - named.height,
        "item_rows_repeated": named.height - first.height,
        "items_added": added.height,
    }
    # Cut before anything is joined, so that only what is kept is ever held.
    taken = {"title": pl.lit(None, pl.String)}
    if "title" in columns:
        taken["title"] = cut(texts(pl.col(columns["title"])), MAX_TITLE_CHARS)
        counts["titles_missing"] = catalogue.row(n=texts(pl.col(columns["title"])).null_count())["n"]
    if "category" in columns:
        taken["genres"] = _categories(catalogue.table.collect_schema()[columns["category"]], columns["category"])
    if "year" in columns:
        taken["year"] = pl.col(columns["year"]).cast(pl.String).str.extract(r"\b(1[5-9]\d\d|20\d\d)\b").cast(pl.Int32)
    if "text" in columns:
        text = pl.col(columns["text"]).cast(pl.String)
        taken["text"] = cut(text, MAX_TEXT_CHARS)
        counts["texts_cut"] = catalogue.row(n=(text.str.len_chars() > MAX_TEXT_CHARS).sum())["n"]
    described = (
        catalogue.table.select(**taken)
        .with_row_index("row")
        .join(first.lazy(), on="row")
        .select("item_id", pl.coalesce("title", ORIGINAL).alias("title"), *(name for name in taken if name != "title"))
    )
    return pl.concat([described, added.lazy().select("item_id", title=ORIGINAL)], how="diagonal"), counts


def _categories(dtype: pl.DataType, column: str) -> pl.Expr:
    parts = pl.col(column).cast(pl.List(pl.String))
    if not isinstance(dtype, pl.List):
        parts = pl.col(column).cast(pl.String).str.split(LIST_SEPARATOR)
    return parts.list.eval(pl.element().str.strip_chars()).list.eval(pl.element().filter(pl.element() != ""))


def _users(people: _Source, user_ids: pl.DataFrame) -> pl.DataFrame:
    """Return the categories of the users that have interactions, the first row of each."""
    key = people.columns["user"]
    others = [texts(pl.col(name)) for name in people.table.collect_schema() if name != key]
    table = people.collect(originals(key), *others).unique(ORIGINAL, keep="first", maintain_order=True)
    table = user_ids.join(table, on=ORIGINAL, maintain_order="left").drop(ORIGINAL)
    return table.with_columns(pl.col(pl.String).fill_null(UNKNOWN_CATEGORY))


def _iso(timestamp: int) -> str:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).isoformat()
