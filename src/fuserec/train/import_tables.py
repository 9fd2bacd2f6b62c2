"""The tables of an import: interactions, items, users, each with what was treated in it."""

from __future__ import annotations

import polars as pl

from fuserec.errors import DataError
from fuserec.id_map import ORIGINAL, IdMap
from fuserec.train.cells import is_decimal_comma, long_texts, may_be_thousands, numbers, texts
from fuserec.train.data import MAX_TEXT_CHARS, MAX_TITLE_CHARS, UNKNOWN_CATEGORY
from fuserec.train.identities import RAW, raw_ids
from fuserec.train.import_source import ImportFile, is_text
from fuserec.train.sources import cut, reading
from fuserec.train.tables import LIST_SEPARATOR
from fuserec.train.times import Times

Counts = dict[str, int]


def numbered(spellings: pl.DataFrame, ids: IdMap) -> pl.DataFrame:
    """Return the number of each spelling: `raw` str, and `user_id` or `item_id`."""
    return spellings.join(ids.table, on=ORIGINAL).select(RAW, ids.number)


def interactions_table(
    file: ImportFile, times: Times, user_ids: pl.DataFrame, item_ids: pl.DataFrame
) -> tuple[pl.DataFrame, Counts]:
    """Return the interactions sorted by time, ties in the order of the file, and what was treated.

    Args:
        file: the interactions.
        times: how it writes times.
        user_ids: `raw`, `user_id`.
        item_ids: `raw`, `item_id`.
    """
    columns = {"user": raw_ids(file.columns["user"]), "item": raw_ids(file.columns["item"]), "timestamp": times.seconds}
    treated: Counts = {}
    if "rating" in file.columns:
        columns["rating"], treated["decimal_commas"] = _ratings(file)
    with reading(file.path):
        table = (
            file.table.select(**columns)
            .with_row_index("row")
            .join(user_ids.lazy(), left_on="user", right_on=RAW, how="left")
            .join(item_ids.lazy(), left_on="item", right_on=RAW, how="left")
            .drop("user", "item")
            .collect(engine="streaming")
            .sort("row")
        )
    blank = file.source.layout.blank if file.source.layout else 0
    treated |= {
        "rows_without_user": table["user_id"].null_count() - blank,
        "rows_without_item": table["item_id"].null_count() - blank,
        "rows_without_time": table["timestamp"].null_count() - blank,
    }
    table = table.drop_nulls(["user_id", "item_id", "timestamp"])
    if "rating" in columns:
        rated = table.filter(pl.col("rating").is_finite())  # null is not finite either
        treated["rows_without_rating"] = table.height - rated.height
        table = rated
    treated["rows_out_of_order"] = int((table["timestamp"].diff() < 0).sum())
    names = ["user_id", "item_id", "timestamp", *(["rating"] if "rating" in columns else [])]
    unique = table.sort("timestamp", maintain_order=True).select(names).unique(maintain_order=True)
    treated["duplicate_rows"] = table.height - unique.height
    return unique, treated


def _ratings(file: ImportFile) -> tuple[pl.Expr, int]:
    """Return the ratings, and how many are written with a decimal comma.

    Raises:
        DataError: Commas may part thousands, or there are points as well.
    """
    column, dtype = file.columns["rating"], file.dtype("rating")
    if not is_text(dtype) or dtype.is_temporal():
        raise DataError(f"{file.where('rating')} is {dtype}; expected numbers; --rating-column '' takes no ratings")
    text = texts(pl.col(column))
    if dtype != pl.String:
        return pl.col(column).cast(pl.Float32, strict=False), 0
    is_comma = is_decimal_comma(text)
    found = file.row(
        commas=is_comma.sum(), first=text.filter(is_comma).first(), thousands=may_be_thousands(text).sum(),
        points=text.str.contains(".", literal=True).sum(),
    )  # fmt: skip
    if found["commas"] and (found["points"] or found["thousands"] == found["commas"]):
        why = "beside others with a point" if found["points"] else "which may part thousands"
        raise DataError(
            f"{file.where('rating')} has {found['commas']} numbers with a comma such as {found['first']!r}, {why}; "
            "expected a decimal comma in all of them, or a decimal point"
        )
    return numbers(text).cast(pl.Float32), int(found["commas"])


def items_table(
    file: ImportFile | None, item_ids: pl.DataFrame, ids: IdMap, consumed: pl.DataFrame
) -> tuple[pl.LazyFrame, Counts]:
    """Return the rows of items.parquet, not read yet, and what was treated.

    Args:
        file: what the items are; None for nothing.
        item_ids: `raw`, `item_id` of the file.
        ids: of all items.
        consumed: `item_id`, `original` of the items with interactions, sorted.
    """
    if file is None:
        return consumed.lazy().select("item_id", title=ORIGINAL), {}
    raw = file.collect(raw_ids(file.columns["item"])).with_row_index("row")
    named = raw.join(item_ids, on=RAW, maintain_order="left")
    first = named.unique("item_id", keep="first", maintain_order=True).join(
        ids.table, on="item_id", maintain_order="left"
    )
    added = consumed.join(first, on="item_id", how="anti", maintain_order="left")
    blank = file.source.layout.blank if file.source.layout else 0
    counts = {
        "item_rows_without_id": raw.height - named.height - blank,
        "item_rows_repeated": named.height - first.height,
        "items_added": added.height,
    }
    taken, further = _described(file)
    described = (
        file.table.with_row_index("row")
        .select("row", **taken)
        .join(first.lazy().select("row", "item_id", ORIGINAL), on="row", maintain_order="left")
        .select("item_id", pl.coalesce("title", ORIGINAL).alias("title"), *(name for name in taken if name != "title"))
    )
    rows = pl.concat([described, added.lazy().select("item_id", title=ORIGINAL)], how="diagonal")
    counts["titles_missing"] = 0
    if "title" in file.columns:
        missing = file.collect(missing=texts(pl.col(file.columns["title"])).is_null()).with_row_index("row")
        counts["titles_missing"] = missing.filter("missing").join(first, on="row", how="semi").height
    return rows, counts | further


def _described(file: ImportFile) -> tuple[dict[str, pl.Expr], Counts]:
    """Return what is taken of the columns of an item file; texts are cut before anything is joined."""
    columns, counts = file.columns, {}
    taken = {"title": pl.lit(None, pl.String)}
    if "title" in columns:
        title = texts(pl.col(columns["title"]))
        taken["title"] = cut(title, MAX_TITLE_CHARS)
        counts["titles_cut"] = (title.str.len_chars() > MAX_TITLE_CHARS).sum()
    if "category" in columns:
        parts = _categories(file.dtype("category"), columns["category"])
        taken["genres"] = parts.list.unique(maintain_order=True)
        counts["categories_repeated"] = (parts.list.n_unique() < parts.list.len()).sum()
    if "year" in columns:
        taken["year"] = pl.col(columns["year"]).cast(pl.String).str.extract(r"\b(1[5-9]\d\d|20\d\d)\b").cast(pl.Int32)
    if "text" in columns:
        text = pl.col(columns["text"]).cast(pl.String)
        taken["text"] = long_texts(cut(text, MAX_TEXT_CHARS))  # in this order, or a whole text would be copied
        counts["texts_cut"] = (text.str.len_chars() > MAX_TEXT_CHARS).sum()
    return taken, file.row(**counts) if counts else {}


def _categories(dtype: pl.DataType, column: str) -> pl.Expr:
    if isinstance(dtype, pl.List | pl.Array):
        parts = pl.col(column).cast(pl.List(dtype.inner)).cast(pl.List(pl.String))
    else:
        parts = pl.col(column).cast(pl.String).str.split(LIST_SEPARATOR)
    return parts.list.eval(texts(pl.element())).list.drop_nulls()


def users_table(file: ImportFile, user_ids: pl.DataFrame, known: pl.Series) -> tuple[pl.DataFrame, Counts, list[str]]:
    """Return the categories of the users that have interactions, the first row of each.

    With them, what was treated, and the columns that could not be read.

    Args:
        file: what is known of users.
        user_ids: `raw`, `user_id` of the file.
        known: the users with interactions.
    """
    schema = file.table.collect_schema()
    others = [name for name in schema if name != file.columns["user"]]
    unusable = [f"users.{name} ({schema[name]})" for name in others if not is_text(schema[name])]
    values = [texts(pl.col(name)) for name in others if is_text(schema[name])]
    table = file.collect(raw_ids(file.columns["user"]), *values)
    everybody = known.unique().sort().rename("user_id").to_frame()
    of_known = (
        table.join(user_ids, on=RAW, maintain_order="left")
        .drop(RAW)
        .join(everybody, on="user_id", how="semi", maintain_order="left")
    )
    first = of_known.unique("user_id", keep="first", maintain_order=True)
    told = everybody.join(first, on="user_id", how="left", maintain_order="left")
    blank = file.source.layout.blank if file.source.layout else 0
    counts = {
        "user_rows_repeated": of_known.height - first.height,
        "user_rows_unknown": table.height - of_known.height - blank,
    }
    return told.with_columns(pl.col(pl.String).fill_null(UNKNOWN_CATEGORY)), counts, unusable
