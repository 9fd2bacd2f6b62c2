"""Files as other tools write them: read as they are meant, or refused with what came and where; no row is lost."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fuserec.errors import DataError, UsageError
from fuserec.train import csv_layout
from fuserec.train.data import read_folder
from fuserec.train.import_report import Imported, ImportOptions
from fuserec.train.importing import import_folder
from fuserec.train.tables import Column, read_table

START = 1_704_708_000  # 2024-01-08 10:00 UTC
HEADER = "user,item,time"
SHORT = f"{HEADER}\nu,a,1\nu,b,2\nu,c,3\n"
CATALOGUE = {"item_id": Column(pl.Int64()), "title": Column(pl.String())}


def load(folder: Path, orders: str | bytes, items: str | bytes | None = None, **options: Any) -> Imported:
    """Import texts as files; the data folder is `folder / "data"`."""
    paths = {}
    for name, content in (("orders", orders), ("items", items)):
        if content is not None:
            paths[name] = folder / f"{name}.csv"
            paths[name].write_bytes(content if isinstance(content, bytes) else content.encode())
    told = options.pop("told", None)
    settings = ImportOptions(**options)
    return import_folder(paths["orders"], folder / "data", items=paths.get("items"), told=told, options=settings)


def frame(folder: Path, table: pl.DataFrame, items: pl.DataFrame | None = None, **files: Any) -> Imported:
    """Import tables as Parquet."""
    table.write_parquet(folder / "orders.parquet")
    if items is not None:
        items.write_parquet(folder / "items.parquet")
        files["items"] = folder / "items.parquet"
    return import_folder(folder / "orders.parquet", folder / "data", **files)


def rows(folder: Path) -> list[tuple[str, str, int]]:
    """The interactions with the ids that they had."""
    table = pl.read_parquet(folder / "data" / "interactions.parquet")
    for kind in ("user", "item"):
        ids = pl.read_parquet(folder / "data" / f"ids_{kind}s.parquet").rename({"original": kind})
        table = table.join(ids, on=f"{kind}_id", maintain_order="left")
    return table.select("user", "item", "timestamp").rows()


def times(folder: Path) -> list[int]:
    return pl.read_parquet(folder / "data" / "interactions.parquet")["timestamp"].to_list()


def numbers(folder: Path, kind: str = "item") -> dict[str, int]:
    table = pl.read_parquet(folder / "data" / f"ids_{kind}s.parquet")
    return dict(table.select("original", f"{kind}_id").iter_rows())


def titles(folder: Path) -> list[str]:
    return read_table(folder / "data", "items", CATALOGUE)["title"].to_list()


def counted(report: Imported) -> dict[str, int]:
    return {name: count for name, count in report.treated.items() if count and name != "users_not_evaluated"}


def test_items_that_are_ids_and_nothing_else(tmp_path: Path) -> None:
    report = load(tmp_path, SHORT, "sku,price\na,1\nb,2\nc,3\n")
    assert (titles(tmp_path), counted(report)) == (["a", "b", "c"], {})


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        pytest.param('item,title\na,24" monitor\nb,Bed\nc,Cup\n', ['24" monitor', "Bed", "Cup"], id="within"),
        pytest.param('item\ttitle\na\t"Bed\nb\tLamp"\nc\tCup\n', ['"Bed', 'Lamp"', "Cup"], id="pair over lines"),
        pytest.param('item\ttitle\na\t"Bed\nb\tLamp\nc\tCup\n', ['"Bed', "Lamp", "Cup"], id="unbalanced"),
        pytest.param('item,title\na,"24"" monitor, black"\nb,"Be\nd"\nc,""\n', ['24" monitor, black', "Be\nd", "c"],
                     id="as RFC 4180 has it"),
        pytest.param('item,title\r\na,"24"""\r\nb,""""\r\nc,"Cup"', ['24"', '"', "Cup"], id="CRLF and doubled quotes"),
        pytest.param('item;title\na;"x;y"\nb;"Bed"\nc;Cup\n', ["x;y", "Bed", "Cup"], id="separator in quotes"),
        pytest.param('"item","title"\na,A\nb,B\nc,C\n', ["A", "B", "C"], id="quoted header"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk_bytes", [1, 2, 5, 4 * 2**20])
def test_quotes_are_read_as_they_are_meant(
    items: str, expected: list[str], chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_layout, "_CHUNK_BYTES", chunk_bytes)
    load(tmp_path, SHORT, items)
    assert titles(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(f'{HEADER}\nu,"a",1\nu,"b "c"",2\nu,"x,y",3\n', "line 3: a quote that is neither", id="quote"),
        pytest.param(f"{HEADER}\nu,a,1\nu,b,2,9\n", "line 3 has 4 fields and the header 3", id="more fields"),
        pytest.param(f"{HEADER}\nu,a,1,\nu,b,2,\n", "line 2 has 4 fields", id="a separator at the end"),
        pytest.param("user,item,time,item\nu,a,1,b\n", "1 column names stand there twice, such as 'item'", id="twice"),
        pytest.param("user,item,time\ru,a,1\ru,b,2\r", r"lines end in \\r alone", id="old Mac"),
        pytest.param(b"\x1f\x8b\x08" + b"\0" * 20, "compressed by gzip; unpack it first: gunzip", id="gzip"),
        pytest.param(b"PK\x03\x04" + b"\0" * 20, "a zip archive or an Excel workbook", id="zip"),
        pytest.param(f"{HEADER}\nu,Café,1\n".encode("cp1252"), "--encoding latin1; the first is 0xe9 in line 2",
                     id="e acute"),
        pytest.param(f"{HEADER}\nu,a,1\nu,b“,1\n".encode("cp1252"), "--encoding cp1252; the first is 0x93 in line 3",
                     id="quotation marks of Windows"),
    ],
)  # fmt: skip
def test_what_makes_no_table_is_refused_with_the_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, text)


def test_short_and_empty_lines_are_counted(tmp_path: Path) -> None:
    report = load(tmp_path, f"\ufeff{HEADER}\r\nu,a,1\r\n\r\nu,b\r\nu,c,3\r\n\r\n")
    assert rows(tmp_path) == [("u", "a", 1), ("u", "c", 3)]
    assert counted(report) == {"rows_blank": 2, "rows_short": 1, "rows_without_time": 1}
    assert report.rows == 5


def test_options_and_guesses_are_of_one_file(tmp_path: Path) -> None:
    text = "id,sku,ts\nu,a,1\nu,b,2\nu,c,3\n"
    report = load(tmp_path, text, "id,title\na,A\nb,B\nc,C\n", told={"user": "id"})
    assert report.columns == {
        "interactions": {"user": "id", "item": "sku", "time": "ts"}, "items": {"item": "id", "title": "title"}
    }  # fmt: skip
    assert titles(tmp_path) == ["A", "B", "C"]
    report = load(tmp_path, text, "id,code,title\n9,a,A\n8,b,B\n7,c,C\n", told={"user": "id", "items_item": "code"})
    assert report.columns["items"]["item"] == "code" and titles(tmp_path) == ["A", "B", "C"]
    with pytest.raises(DataError, match=r"no column 'nr' \(--items-item-column\); found id, title"):
        load(tmp_path, text, "id,title\na,A\n", told={"user": "id", "items_item": "nr"})


def test_the_item_column_that_was_told_is_that_of_the_items_too(tmp_path: Path) -> None:
    load(tmp_path, "user,thing,time\nu,a,1\n", "thing,title\na,A\n", told={"item": "thing"})
    assert titles(tmp_path) == ["A"]


DAY_8, DAY_9 = 1_704_672_000, 1_704_758_400


@pytest.mark.parametrize(
    ("written", "read", "kind"),
    [
        pytest.param(["20240108", "20240109"], [DAY_8, DAY_9], "dates as YYYYMMDD", id="YYYYMMDD"),
        pytest.param(["20240108.0", "20240109.0"], [DAY_8, DAY_9], "dates as YYYYMMDD", id="as a float"),
        pytest.param(["2024010810", "2024010811"], [START, START + 3600], "dates as YYYYMMDDHH", id="with hours"),
        pytest.param(["202401081000", "202401081001"], [START, START + 60], "dates as YYYYMMDDHHMM", id="minutes"),
        pytest.param(["20240108100000", "20240108100001"], [START, START + 1], "dates as YYYYMMDDHHMMSS", id="seconds"),
        pytest.param(["45299.375", "45300"], [1_704_704_400, DAY_9], "spreadsheet days since 1899-12-30", id="Excel"),
        pytest.param([" 1704708000", "1.704708001e9"], [START, START + 1], "epoch seconds", id="as floats"),
        pytest.param(["1704708000000", "0", "NULL"], [0, START], "epoch milliseconds", id="zero is of any unit"),
        pytest.param(["2024-01-08T10:00:00+00:00", "2024-01-08 05:00 -0500"], [START, START], "ISO 8601 dates",
                     id="zones"),
    ],
)  # fmt: skip
def test_times_in_any_notation(written: list[str], read: list[int], kind: str, tmp_path: Path) -> None:
    lines = "".join(f"u,{place},{time}\n" for place, time in enumerate(written))
    assert load(tmp_path, f"{HEADER}\n{lines}").times == kind
    assert times(tmp_path) == read


@pytest.mark.parametrize(
    ("written", "message"),
    [
        pytest.param([f"{START}000", f"{START}001", str(START)], "1 times such as '1704708000' among", id="units"),
        pytest.param([str(START), str(START + 1), "45299"], "1 times such as '45299' among", id="Excel"),
        pytest.param([str(START), str(START), f"{START}000", f"{START}000"], "2 times that are not between", id="s"),
        pytest.param(["202401", "202402"], r"2 numbers like '202401', which may be YYYYMM", id="months"),
        pytest.param(["2023", "2024"], r"2 numbers like '2023', which may be YYYY", id="years"),
        pytest.param(["240108", "240109"], r"2 numbers like '240108', which may be YYMMDD", id="short dates"),
        pytest.param(["20240108", "20240231"], "1 values like '20240231'; expected dates as YYYYMMDD", id="no day"),
        pytest.param(["12/31/2024"], r"--time-format: here '%m/%d/%Y'$", id="American"),
        pytest.param(["11/12/2024"], r"--time-format: here '%m/%d/%Y' or '%d/%m/%Y'", id="in two ways"),
        pytest.param(["31.12.2024 23:59"], r"--time-format: here '%d.%m.%Y %H:%M'", id="German"),
        pytest.param(["soon"], r"--time-format, such as '%d.%m.%Y %H:%M'", id="no time"),
        pytest.param(["-5", "7"], "1 times that are not between 1970 and 2100, such as '-5'", id="negative"),
    ],
)  # fmt: skip
def test_times_that_are_refused(written: list[str], message: str, tmp_path: Path) -> None:
    lines = "".join(f"u,{place},{time}\n" for place, time in enumerate(written))
    with pytest.raises(DataError, match=message):
        load(tmp_path, f"{HEADER}\n{lines}")


@pytest.mark.parametrize(
    ("time_format", "written", "read"),
    [
        ("%m/%d/%Y", "01/08/2024", DAY_8),
        ("%d.%m.%Y %H:%M", "08.01.2024 10:00", START),
        ("%Y-%m-%d %H:%M:%S%z", "2024-01-08 12:00:00+0200", START),
        ("seconds", "45299", 45_299),
        ("milliseconds", "1704708000999", START),
        ("excel", "45299", DAY_8),
    ],
)
def test_times_as_told(time_format: str, written: str, read: int, tmp_path: Path) -> None:
    load(tmp_path, f"{HEADER}\nu,a,{written}\n", time_format=time_format)
    assert times(tmp_path) == [read]


def test_options_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="invalid --time-format=soon: must be iso, seconds"):
        ImportOptions(time_format="soon")
    with pytest.raises(UsageError, match="invalid --time-format=%H: .*must be iso"):
        ImportOptions(time_format="%H")
    with pytest.raises(UsageError, match="invalid --encoding=klingon: must be an encoding of texts, such as cp1252"):
        ImportOptions(encoding="klingon")
    with pytest.raises(UsageError, match="invalid --encoding=base64"):
        ImportOptions(encoding="base64")


@pytest.mark.parametrize("marker", ["", " ", "NULL", "null", r"\N", "nan", "NaN", "None", "N/A", "NA", "<NA>", "#N/A"])
def test_what_stands_for_nothing_is_no_id(marker: str, tmp_path: Path) -> None:
    text = f"{HEADER}\n2,10,1\n{marker},10,2\n2,{marker},3\n5,12,{marker}\n5,11,4\n"
    report = load(tmp_path, text, f"item,title\n10,{marker}\n11,B\n{marker},X\n")
    assert counted(report) == {
        "rows_without_user": 1, "rows_without_item": 1, "rows_without_time": 1, "titles_missing": 1,
        "item_rows_without_id": 1,
    }  # fmt: skip
    assert numbers(tmp_path, "user") == {"2": 2, "5": 5}
    assert titles(tmp_path) == ["10", "B"]


@pytest.mark.parametrize(
    ("column", "read", "commas"),
    [
        pytest.param(["4,5", "3", "x"], [4.5, 3.0], 1, id="comma"),
        pytest.param(["4.5", "3", ""], [4.5, 3.0], 0, id="point"),
        pytest.param(["1,234", "0,5"], [pytest.approx(1.234), 0.5], 2, id="three decimals"),
    ],
)
def test_ratings_with_a_decimal_comma(column: list[str], read: list[float], commas: int, tmp_path: Path) -> None:
    lines = "".join(f"u;{place};{place};{rating}\n" for place, rating in enumerate(column))
    report = load(tmp_path, f"user;item;time;rating\n{lines}")
    assert pl.read_parquet(tmp_path / "data" / "interactions.parquet")["rating"].to_list() == read
    assert report.treated["decimal_commas"] == commas
    assert report.treated["rows_without_rating"] == len(column) - len(read)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["4,5", "3.5"], "1 numbers with a comma such as '4,5', beside others with a point"),
        (["1,234", "2,000"], "2 numbers with a comma such as '1,234', which may part thousands"),
    ],
)
def test_commas_of_two_meanings_are_refused(column: list[str], message: str, tmp_path: Path) -> None:
    lines = "".join(f"u;{place};{place};{rating}\n" for place, rating in enumerate(column))
    with pytest.raises(DataError, match=message):
        load(tmp_path, f"user;item;time;rating\n{lines}")


@pytest.mark.parametrize(
    ("codec", "told", "found"),
    [("utf-16", None, "utf-16"), ("utf-16-le", None, "utf-16-le"), ("utf-16-be", None, "utf-16-be"),
     ("utf-8-sig", None, "utf-8"), ("utf-32", None, "utf-32"), ("cp1252", "windows-1252", "cp1252"),
     ("shift_jis", "sjis", "shift_jis")],
)  # fmt: skip
def test_encodings(codec: str, told: str | None, found: str, tmp_path: Path) -> None:
    name = "カフェ" if codec == "shift_jis" else "Café “24”"
    text = f"{HEADER}\r\nuser,{name},1\r\nuser,b,2\r\n".encode(codec)
    report = load(tmp_path, text, encoding=told)
    assert rows(tmp_path) == [("user", name, 1), ("user", "b", 2)]
    assert report.encodings == {"interactions": found}


def test_a_data_folder_in_utf_16_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes("item_id,title\n1,A\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"it is UTF-16; convert it first: iconv -f utf-16 -t utf-8 items\.csv"):
        read_table(tmp_path, "items", CATALOGUE)


def test_another_encoding_than_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"orders\.csv: not ascii from line 1 on"):
        load(tmp_path, f"{HEADER}\nü,a,1\n", encoding="ascii")


@pytest.mark.parametrize(
    ("ids", "expected", "n_numbered"),
    [
        pytest.param(["9223372036854775807", "1234567890123456789"], None, 0, id="19 digits"),
        pytest.param(["5", "-1", "7"], {"5": 5, "7": 7, "-1": 8}, 1, id="one below 0"),
        pytest.param(["9223372036854775807", "-1"], {"9223372036854775807": 2**63 - 1, "-1": 1}, 1, id="none after"),
        pytest.param(["9223372036854775808", "5"], {"5": 1, "9223372036854775808": 2}, 2, id="beyond an int64"),
        pytest.param(["1.0", "1", "1.1"], {"1": 1, "1.0": 2, "1.1": 3}, 2, id="three texts"),
        pytest.param(["1.0", "2.0"], {"1": 1, "2": 2}, 0, id="whole floats"),
        pytest.param(["guest", "5"], {"5": 1, "guest": 2}, 2, id="one text"),
    ],
)  # fmt: skip
def test_ids_keep_what_they_are_or_it_is_said(
    ids: list[str], expected: dict[str, int] | None, n_numbered: int, tmp_path: Path
) -> None:
    report = load(tmp_path, HEADER + "\n" + "".join(f"u,{one},{place}\n" for place, one in enumerate(ids)))
    assert numbers(tmp_path) == (expected or {one: int(one) for one in ids})
    assert report.numbering["items"].numbered == n_numbered
    assert (report.numbering["items"].example is not None) == bool(n_numbered)


def table(**columns: Any) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    defaults = {"user": ["u"] * n, "item": [f"i{place}" for place in range(n)], "time": range(START, START + n)}
    return pl.DataFrame(defaults | columns)


def test_floats_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'user' is Float64 and has 1 ids of 2\^53 or more, such as 9"):
        frame(tmp_path, table(user=[2.0**53, None, 1.0]))
    with pytest.raises(DataError, match=r"column 'user' is Float32 and has 1 ids of 2\^24 or more"):
        frame(tmp_path, table(user=pl.Series([2.0**24, 1.0], dtype=pl.Float32)))
    report = frame(tmp_path, table(user=[2.0**53 - 1, None, float("nan"), 12.0]))
    assert numbers(tmp_path, "user") == {"12": 12, str(2**53 - 1): 2**53 - 1}
    assert report.treated["rows_without_user"] == 2


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        pytest.param(pl.Series([Decimal("7.00"), Decimal("8.00")], dtype=pl.Decimal(10, 2)), ["7", "8"], id="decimal"),
        pytest.param(pl.Series(["b", "a"], dtype=pl.Categorical), ["b", "a"], id="dictionary"),
        pytest.param(pl.Series([True, False]), ["true", "false"], id="bool"),
        pytest.param(pl.Series([2**64 - 1, 3], dtype=pl.UInt64), [str(2**64 - 1), "3"], id="uint64"),
        pytest.param(pl.Series([-3, 4], dtype=pl.Int8), ["-3", "4"], id="int8"),
    ],
)
def test_ids_of_other_types(column: pl.Series, expected: list[str], tmp_path: Path) -> None:
    frame(tmp_path, table(item=column))
    assert [item for _, item, _ in rows(tmp_path)] == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user": [["a"], ["b"]]}, r"column 'user' is List\(String\); expected ids that are texts or whole numbers"),
        ({"item": [b"a", b"\xff"]}, "column 'item' is Binary; expected ids"),
        ({"time": [True, False]}, "column 'time' is Boolean; expected times"),
        ({"time": [timedelta(1), timedelta(2)]}, "column 'time' is Duration.*; expected times"),
        ({"rating": [[1], [2]]}, r"column 'rating' is List\(Int64\); expected numbers; --rating-column ''"),
    ],
)
def test_columns_that_cannot_be_what_they_are_taken_for(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        frame(tmp_path, table(**columns))


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pl.Series([datetime(2024, 1, 8, 11, tzinfo=timezone(timedelta(hours=1)))]).cast(
            pl.Datetime("ns", "Europe/Berlin")), id="ns with a zone"),
        pytest.param(pl.Series([datetime(2024, 1, 8, 10, tzinfo=UTC)]).cast(pl.Datetime("ms", "UTC")), id="ms"),
        pytest.param(pl.Series([START * 10**9]), id="int64 nanoseconds"),
        pytest.param(pl.Series([float(START)]), id="float64"),
        pytest.param(pl.Series([Decimal(START)]), id="decimal"),
    ],
)  # fmt: skip
def test_times_of_parquet(column: pl.Series, tmp_path: Path) -> None:
    frame(tmp_path, table(time=column))
    assert times(tmp_path) == [START]


def test_columns_of_items_and_users_that_hold_no_text(tmp_path: Path) -> None:
    items = pl.DataFrame(
        {"item": ["i0", "i1"], "title": [["A"], ["B"]], "text": [b"\xff", b"x"],
         "tags": pl.Series([["x", "x"], ["y", None]], dtype=pl.Array(pl.String, 2))}
    )  # fmt: skip
    users = pl.DataFrame({"user": ["u"], "tier": ["gold"], "face": [b"\xff"], "likes": [["x"]]})
    users.write_parquet(tmp_path / "users.parquet")
    report = frame(tmp_path, table(time=[1, 2]), items, users=tmp_path / "users.parquet")
    assert report.unusable == [
        "items.title (List(String))", "items.text (Binary)", "users.face (Binary)", "users.likes (List(String))",
    ]  # fmt: skip
    assert counted(report) == {"columns_unusable": 4, "categories_repeated": 1}
    found = pl.read_parquet(tmp_path / "data" / "items.parquet")
    assert (found["title"].to_list(), found["genres"].to_list()) == (["i0", "i1"], [["x"], ["y"]])
    assert pl.read_parquet(tmp_path / "data" / "users.parquet").rows() == [(1, "gold")]
    with pytest.raises(DataError, match=r"column 'title' is List\(String\); expected texts, as the title"):
        import_folder(tmp_path / "orders.parquet", tmp_path / "data", items=tmp_path / "items.parquet",
                      told={"title": "title"})  # fmt: skip


def test_users_twice_and_users_without_interactions_are_counted(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("id,tier\nu,gold\nu,tin\nnobody,tin\n")
    report = import_folder(_write(tmp_path, SHORT), tmp_path / "data", users=tmp_path / "users.csv")
    assert counted(report) == {"user_rows_repeated": 1, "user_rows_unknown": 1}


def _write(folder: Path, text: str) -> Path:
    (folder / "orders.csv").write_text(text)
    return folder / "orders.csv"


def test_a_folder_of_parts(tmp_path: Path) -> None:
    parts = tmp_path / "orders"
    for place, day in enumerate(["2024-01-08", "2024-01-09"]):
        folder = parts / f"date={day}"
        folder.mkdir(parents=True)
        pl.DataFrame({"user": ["u", "v"], "item": [f"a{place}", "b"]}).write_parquet(folder / "part-0.parquet")
    (parts / "_SUCCESS").touch()
    (parts / ".part-0.parquet.crc").write_bytes(b"crc")
    report = import_folder(parts, tmp_path / "data")
    assert report.columns["interactions"]["time"] == "date"
    assert rows(tmp_path) == [("u", "a0", DAY_8), ("v", "b", DAY_8), ("u", "a1", DAY_9), ("v", "b", DAY_9)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is a folder of no file; expected parts of one table"),
        ({"a.parquet": "", "b.csv": ""}, r"is a folder of \.csv, \.parquet; expected parts of one table"),
        ({"a.csv": SHORT, "b.csv": "user,item,when\nu,a,1\n"}, r"b\.csv has columns .* when String; expected those of"),
        ({"day=1/a.csv": "user,item,day\nu,a,1\n"}, "has a column 'day', and so does the name of its folder"),
    ],
)
def test_folders_that_are_no_table(files: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "orders").mkdir()
    for name, content in files.items():
        (tmp_path / "orders" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "orders" / name).write_text(content)
    with pytest.raises(DataError, match=message):
        import_folder(tmp_path / "orders", tmp_path / "data")


def test_a_second_import_into_the_folder_keeps_its_numbers(tmp_path: Path) -> None:
    first = load(tmp_path, SHORT)
    assert first.numbers_from is None
    report = load(tmp_path, f"{SHORT}t,A-new,4\n")
    assert numbers(tmp_path) == {"a": 1, "b": 2, "c": 3, "A-new": 4}
    assert numbers(tmp_path, "user") == {"u": 1, "t": 2}
    assert report.numbers_from == str(tmp_path / "data")
    assert (report.numbering["items"].known, report.numbering["items"].ids) == (3, 4)
    load(tmp_path, f"{SHORT}t,A-new,4\n", renumber=True)
    assert numbers(tmp_path) == {"A-new": 1, "a": 2, "b": 3, "c": 4}


def test_numbers_kept_in_a_checkpoint(tmp_path: Path) -> None:
    load(tmp_path, SHORT)
    kept = tmp_path / "checkpoint"
    kept.mkdir()
    for kind in ("users", "items"):
        (tmp_path / "data" / f"ids_{kind}.parquet").rename(kept / f"ids_{kind}.parquet")
    load(tmp_path, f"{HEADER}\nu,0,1\nu,c,2\n", ids=kept)
    assert numbers(tmp_path) == {"a": 1, "b": 2, "c": 3, "0": 4}


def test_ids_that_differ_in_case(tmp_path: Path) -> None:
    text = f"{HEADER}\nAnn@x.example,a,1\nann@x.example,A,2\nbo@x.example,a,3\n"
    report = load(tmp_path, text)
    assert (report.users, report.numbering["users"].alike, report.numbering["items"].alike) == (3, 1, 1)
    with pytest.raises(DataError, match=r"1 user ids of the earlier import have capitals, such as 'Ann@x\.example'"):
        load(tmp_path, text, fold_case=True)
    report = load(tmp_path, text, "item,title\nA,Lamp\n", fold_case=True, renumber=True)
    assert (report.users, report.treated["ids_merged"], report.numbering["users"].alike) == (2, 2, 0)
    assert rows(tmp_path) == [("ann@x.example", "a", 1), ("ann@x.example", "a", 2), ("bo@x.example", "a", 3)]
    assert titles(tmp_path) == ["Lamp"]


@pytest.mark.parametrize(
    "header",
    [
        "Kundennummer,Artikelnummer,Bestelldatum,Bewertung", "utilisateur,produit,Date commande,évaluation",
        "ID_Usuario,Artículo,fecha,puntuación", "cliente,prodotto,data,voto", "usuário,produto,Data_Hora,avaliação",
        "klant,artikel,datum,beoordeling", "użytkownik,produkt,data,ocena", "пользователь,товар,дата,рейтинг",
        "ユーザーID,商品コード,日時,評価", "用户ID,商品ID,时间,评分",
    ],
)  # fmt: skip
def test_names_in_other_languages(header: str, tmp_path: Path) -> None:
    report = load(tmp_path, f"{header}\nu,a,2024-01-08,4\nu,b,2024-01-09,3\n")
    assert list(report.columns["interactions"].values()) == header.split(",")


def test_columns_that_are_no_ratings_in_english(tmp_path: Path) -> None:
    report = load(tmp_path, f"{HEADER},note,tid\nu,a,1,fine,9\nu,b,2,,8\n")
    assert report.columns["interactions"] == {"user": "user", "item": "item", "time": "time"}
    assert report.interactions == 2


def test_accents_written_in_two_ways_are_said(tmp_path: Path) -> None:
    text = f"{HEADER}\nAndre\u0301,a,1\nAndr\u00e9,b,2\n"
    assert load(tmp_path, text).numbering["users"].alike == 1
    assert load(tmp_path, text, fold_case=True, renumber=True).users == 1


def test_categories_count_once(tmp_path: Path) -> None:
    report = load(tmp_path, SHORT, "item,category\na,Home| Home |Bed\nb,\nc,|NULL|X\n")
    assert read_folder(tmp_path / "data").items["genres"].to_list() == [["Home", "Bed"], [], ["X"]]
    assert report.treated["categories_repeated"] == 1


def test_a_reader_that_loses_a_row_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fuserec.train import sources

    def one_more(path: Path) -> csv_layout.Layout:
        layout = csv_layout.read_layout(path)
        return csv_layout.Layout(**{**vars(layout), "records": layout.records + 1})

    monkeypatch.setattr(sources, "read_layout", one_more)
    with pytest.raises(DataError, match=re.escape("3 rows were read of 4 that there are")):
        load(tmp_path, SHORT)
