"""A data folder in either format comes out the same, or is refused with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from fuserec.errors import DataError
from fuserec.train.data import read_folder

INTERACTIONS = pl.DataFrame(
    {"user_id": [1, 1, 1, 2], "item_id": [30, 10, 20, 10], "timestamp": [5, 6, 7, 5], "rating": [1.0, 2.5, 3.0, 4.0]},
    schema_overrides={"rating": pl.Float32},
)
ITEMS = pl.DataFrame(
    {"item_id": [20, 10, 30], "title": ["b", "a", "c"], "genres": [["x", "y"], [], ["z"]], "year": [1999, None, 2001]},
    schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
)


def write_parquet(folder: Path, interactions: pl.DataFrame = INTERACTIONS, items: pl.DataFrame = ITEMS) -> None:
    interactions.write_parquet(folder / "interactions.parquet")
    items.write_parquet(folder / "items.parquet")


def write_csv(folder: Path) -> None:
    INTERACTIONS.write_csv(folder / "interactions.csv")
    ITEMS.with_columns(pl.col("genres").list.join("|")).write_csv(folder / "items.csv")


@pytest.mark.parametrize("write", [write_parquet, write_csv], ids=["parquet", "csv"])
def test_reads_both_formats(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    dataset = read_folder(tmp_path)
    assert dataset.interactions.equals(INTERACTIONS)
    assert dataset.interactions.schema == INTERACTIONS.schema
    assert dataset.items.equals(ITEMS.sort("item_id"))
    assert dataset.items.schema == ITEMS.schema


def test_optional_columns_are_filled_in_and_others_left_out(tmp_path: Path) -> None:
    write_parquet(tmp_path, INTERACTIONS.drop("rating").with_columns(mood=pl.lit("?")), ITEMS.drop("genres", "year"))
    dataset = read_folder(tmp_path)
    assert dataset.interactions.columns == ["user_id", "item_id", "timestamp"]
    assert dataset.items["genres"].to_list() == [[], [], []]
    assert dataset.items["year"].to_list() == [None, None, None]
    assert dataset.items.schema["year"] == pl.Int32


def test_smaller_integers_and_whole_ratings_are_taken(tmp_path: Path) -> None:
    write_parquet(tmp_path, INTERACTIONS.cast({"user_id": pl.Int16, "item_id": pl.UInt32, "rating": pl.Int8}))
    schema = read_folder(tmp_path).interactions.schema
    assert schema == INTERACTIONS.schema


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parquet(tmp_path, pl.concat([INTERACTIONS, INTERACTIONS[:2]]))
    with caplog.at_level(logging.INFO, logger="fuserec"):
        assert read_folder(tmp_path).interactions.equals(INTERACTIONS)
    assert "dropped 2 duplicate interactions" in caplog.text


def test_the_same_pair_at_another_time_is_kept(tmp_path: Path) -> None:
    again = pl.concat([INTERACTIONS, INTERACTIONS[:1].with_columns(timestamp=pl.lit(9, dtype=pl.Int64))])
    write_parquet(tmp_path, again)
    assert read_folder(tmp_path).interactions.equals(again)


def test_long_texts_and_titles_are_cut_while_they_are_read(tmp_path: Path) -> None:
    texts = pl.Series(["é" * 5_000, "short", None])
    write_parquet(tmp_path, items=ITEMS.with_columns(text=texts, title=pl.Series(["t" * 501, "a", "c"])))
    items = read_folder(tmp_path).items
    assert items["text"].to_list() == ["short", "é" * 4_000, ""]
    assert items["title"].str.len_chars().to_list() == [1, 500, 1]


def test_users_have_any_categories_as_text(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    assert read_folder(tmp_path).users is None
    (tmp_path / "users.csv").write_text("tier,user_id,country\n2,2,\n1,1,NL\n")
    users = read_folder(tmp_path).users
    assert users is not None
    assert users.to_dict(as_series=False) == {"user_id": [1, 2], "tier": ["1", "2"], "country": ["NL", "unknown"]}


def test_users_twice_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    pl.DataFrame({"user_id": [1, 1], "tier": [2, 3]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="users: 1 user_ids appear more than once, such as 1"):
        read_folder(tmp_path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "items.csv").write_bytes("item_id,title\n10,Café\n20,b\n30,c\n".encode("latin1"))
    with pytest.raises(DataError, match=r"items\.csv: not readable as csv: .* not UTF-8; convert it first: iconv"):
        read_folder(tmp_path)


def test_one_item_is_nothing_to_rank(tmp_path: Path) -> None:
    write_parquet(tmp_path, INTERACTIONS.filter(pl.col("item_id") == 10), ITEMS.filter(pl.col("item_id") == 10))
    with pytest.raises(DataError, match="only one item; expected at least two"):
        read_folder(tmp_path)


def test_one_user_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parquet(tmp_path, INTERACTIONS[:3])
    assert read_folder(tmp_path).interactions.height == 3
    assert "only one user; what is scored on one user says nothing" in caplog.text


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_any_usual_separator_is_read(tmp_path: Path, separator: str) -> None:
    ITEMS.drop("genres").write_csv(tmp_path / "items.csv", separator=separator)
    INTERACTIONS.write_csv(tmp_path / "interactions.csv", separator=separator)
    assert read_folder(tmp_path).interactions.equals(INTERACTIONS)


def with_value(table: pl.DataFrame, column: str, value: object) -> pl.DataFrame:
    """Replace the first value of a column."""
    values = [value, *table[column].to_list()[1:]]
    return table.with_columns(pl.Series(column, values, dtype=table.schema[column]))


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        pytest.param(INTERACTIONS.drop("timestamp"), ITEMS, "no column 'timestamp'; found user_id", id="no-column"),
        pytest.param(INTERACTIONS, ITEMS.drop("title"), "no column 'title'", id="no-title"),
        pytest.param(
            INTERACTIONS.cast({"user_id": pl.String}), ITEMS, "'user_id' is String; expected Int64", id="text"
        ),
        pytest.param(INTERACTIONS.cast({"item_id": pl.Float64}), ITEMS, "'item_id' is Float64", id="float-ids"),
        pytest.param(INTERACTIONS, ITEMS.cast({"year": pl.Float64}), "'year' is Float64; expected Int32", id="year"),
        pytest.param(INTERACTIONS[:0], ITEMS, "no rows", id="no-interactions"),
        pytest.param(INTERACTIONS, ITEMS[:0], "no rows", id="no-items"),
        pytest.param(with_value(INTERACTIONS, "item_id", None), ITEMS, "'item_id' has 1 nulls", id="null-id"),
        pytest.param(INTERACTIONS, with_value(ITEMS, "title", None), "'title' has 1 nulls", id="null-title"),
        pytest.param(with_value(INTERACTIONS, "timestamp", -1), ITEMS, "1 timestamps .* such as -1", id="before-1970"),
        pytest.param(
            with_value(INTERACTIONS, "timestamp", 1_700_000_000_000), ITEMS, "such as 1700000000000; .*import`", id="ms"
        ),
        pytest.param(with_value(INTERACTIONS, "user_id", -4), ITEMS, "negative user_ids, such as -4", id="negative"),
        pytest.param(with_value(INTERACTIONS, "rating", float("nan")), ITEMS, "1 ratings are not finite", id="nan"),
        pytest.param(with_value(INTERACTIONS, "rating", float("inf")), ITEMS, "not finite, such as inf", id="inf"),
        pytest.param(INTERACTIONS, with_value(ITEMS, "item_id", 10), "more than once, such as 10", id="item-twice"),
        pytest.param(INTERACTIONS, ITEMS[:2], "1 interactions name 1 item_ids .* such as 30", id="unknown-item"),
        pytest.param(INTERACTIONS[1:], ITEMS, "no user has more than 2 interactions", id="nobody-to-evaluate"),
        pytest.param(
            with_value(INTERACTIONS.cast({"user_id": pl.UInt64}), "user_id", 2**63), ITEMS, "expected Int64", id="big"
        ),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, interactions: pl.DataFrame, items: pl.DataFrame, message: str) -> None:
    write_parquet(tmp_path, interactions, items)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("interactions.csv", "user_id,item_id,timestamp\n1,10,yesterday\n", "like 'yesterday'", id="text"),
        pytest.param("interactions.csv", "user_id,item_id,timestamp\n1,1.5,3\n", "like '1.5'; expected", id="float"),
        pytest.param("interactions.csv", "user_id,item_id,timestamp\n1,,3\n", "'item_id' has 1 nulls", id="null"),
        pytest.param("interactions.csv", "user_id,item_id,timestamp\n", "no rows", id="header-only"),
        pytest.param("interactions.csv", "", "empty file", id="empty"),
        pytest.param("interactions.parquet", "", "empty file", id="empty-parquet"),
        pytest.param(
            "interactions.csv",
            "user_id,item_id,timestamp\nann@shop.example,1,3\n",
            "like 'ann@shop.example'; expected Int64; `fuserec data import` numbers",
            id="ids-as-strings",
        ),
        pytest.param("interactions.csv", "user_id,item_id,timestamp\n1,2,3,4\n", "not readable as csv", id="ragged"),
        pytest.param("interactions.parquet", "junk", "begins with b'junk'.*name it .csv", id="csv-named-parquet"),
        pytest.param("interactions.parquet", "PAR1 and no more", "not readable as parquet", id="broken-parquet"),
        pytest.param("interactions.csv", "PAR1 and no more", "it is a Parquet file; name it", id="parquet-named-csv"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    write_parquet(tmp_path)
    (tmp_path / "interactions.parquet").unlink()
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


def test_missing_folder_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected interactions.parquet or interactions.csv"):
        read_folder(tmp_path)
    write_parquet(tmp_path)
    (tmp_path / "items.parquet").unlink()
    with pytest.raises(DataError, match="expected items.parquet or items.csv"):
        read_folder(tmp_path)


def test_both_formats_at_once(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    write_csv(tmp_path)
    with pytest.raises(DataError, match=r"both interactions\.parquet and interactions\.csv"):
        read_folder(tmp_path)
