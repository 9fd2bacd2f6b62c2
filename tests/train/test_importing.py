"""A user's own files become a data folder, and each kind of bad data is treated as docs/your-own-data.md says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from fuserec.display_data import TREATMENTS
from fuserec.errors import DataError
from fuserec.train.data import read_folder
from fuserec.train.importing import Imported, import_folder

DAY = 86_400
START = 1_704_067_200  # 2024-01-01
ORDERS = """email,SKU,Event Time,stars
bo@x.example,L-2,2024-01-03T00:00:00Z,5
al@x.example,L-1,2024-01-01,4
al@x.example,B-7,2024-01-02 10:00:00+02:00,3.5
al@x.example,L-2,2024-01-05 00:00:00.75,1
"""
PRODUCTS = """sku;product_name;categories;description;release_date
L-2;Lamp;Home | Light;It shines;2019-02-03
L-1;Bulb;Light;;1999
B-7;Bed;;Sleep;
"""


def load(folder: Path, orders: str | bytes = ORDERS, items: str | bytes | None = None, **options: Any) -> Imported:
    """Import texts as files; the data folder is `folder / "data"`."""
    path = folder / "orders.csv"
    path.write_bytes(orders if isinstance(orders, bytes) else orders.encode())
    if items is not None:
        options["items"] = folder / "products.csv"
        options["items"].write_bytes(items if isinstance(items, bytes) else items.encode())
    return import_folder(path, folder / "data", **options)


def orders(*rows: str, header: str = "user,item,time") -> str:
    return "\n".join([header, *rows, ""])


def test_columns_are_guessed_ids_numbered_times_converted(tmp_path: Path) -> None:
    report = load(tmp_path, items=PRODUCTS)
    assert report.columns == {
        "interactions": {"user": "email", "item": "SKU", "time": "Event Time", "rating": "stars"},
        "items": {
            "item": "sku", "title": "product_name", "text": "description", "category": "categories",
            "year": "release_date",
        },
    }  # fmt: skip
    assert report.times == "ISO 8601 dates"
    dataset = read_folder(tmp_path / "data")
    # Numbered in alphabetical order: al, bo; B-7, L-1, L-2. Sorted by time.
    assert dataset.interactions.rows() == [
        (1, 2, START, 4.0),
        (1, 1, START + DAY + 8 * 3600, 3.5),
        (2, 3, START + 2 * DAY, 5.0),
        (1, 3, START + 4 * DAY, 1.0),
    ]
    assert dataset.items.rows() == [
        (1, "Bed", [], None, "Sleep"),
        (2, "Bulb", ["Light"], 1999, ""),
        (3, "Lamp", ["Home", "Light"], 2019, "It shines"),
    ]
    users, items = (pl.read_parquet(tmp_path / "data" / f"ids_{kind}s.parquet") for kind in ("user", "item"))
    assert users.to_dict(as_series=False) == {"user_id": [1, 2], "original": ["al@x.example", "bo@x.example"]}
    assert items.schema == {"item_id": pl.Int64(), "original": pl.String()}
    assert items["original"].to_list() == ["B-7", "L-1", "L-2"]
    note = json.loads((tmp_path / "data" / "source.json").read_text())
    assert note["source"] == "fuserec data import" and note["interactions"] == 4


def test_columns_as_told(tmp_path: Path) -> None:
    text = orders("9,1,x,5", "9,2,x,6", "9,3,x,7", header="who,what,user,when")
    report = load(tmp_path, text, told={"user": "who", "item": "what", "time": "when"})
    assert report.columns["interactions"] == {"user": "who", "item": "what", "time": "when"}
    assert read_folder(tmp_path / "data").interactions["user_id"].to_list() == [9, 9, 9]


def test_an_empty_name_takes_no_column(tmp_path: Path) -> None:
    report = load(tmp_path, ORDERS.replace(",5\n", ",awful\n"), told={"rating": ""})
    assert report.interactions == 4
    assert "rating" not in read_folder(tmp_path / "data").interactions.columns


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"time": "when"}, r"no column 'when' \(--time-column\); found user, item, happened"),
        ({}, "no column is named like the time; found user, item, happened; give --time-column NAME"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, told: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, orders("1,2,3", header="user,item,happened"), told=told)


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")]
)
def test_epoch_numbers_of_any_unit(tmp_path: Path, factor: int, unit: str) -> None:
    times = [(START + step) * factor + factor // 2 for step in range(3)]
    report = load(tmp_path, orders(*(f"1,{step},{time}" for step, time in enumerate(times))))
    assert report.times == f"epoch {unit}"
    assert read_folder(tmp_path / "data").interactions["timestamp"].to_list() == [START, START + 1, START + 2]


def test_parquet_with_date_columns_float_ids_and_list_categories(tmp_path: Path) -> None:
    table = pl.DataFrame({"user": [1.0, 1.0, None, 1.0], "item": [3, 4, 4, 5], "time": [START + n for n in range(4)]})
    table = table.with_columns(pl.from_epoch("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"))
    items = pl.DataFrame({"id": [3, 4, 5], "name": ["a", "b", "c"], "tags": [["x"], None, ["y", "z"]]})
    items.write_parquet(tmp_path / "items.parquet")
    table.write_parquet(tmp_path / "orders.parquet")
    report = import_folder(tmp_path / "orders.parquet", tmp_path / "data", items=tmp_path / "items.parquet")
    assert report.treated["rows_without_user"] == 1
    dataset = read_folder(tmp_path / "data")
    # 1.0 is what pandas makes of 1 beside a missing value; ids that are numbers stay what they are.
    assert dataset.interactions.rows() == [(1, 3, START), (1, 4, START + 1), (1, 5, START + 3)]
    assert dataset.items["genres"].to_list() == [["x"], [], ["y", "z"]]


def test_ids_with_leading_zeros_are_not_numbers(tmp_path: Path) -> None:
    load(tmp_path, orders("1,007,1", "1,7,2", "1,8,3"))
    assert pl.read_parquet(tmp_path / "data" / "ids_items.parquet")["original"].to_list() == ["007", "7", "8"]
    assert read_folder(tmp_path / "data").interactions["item_id"].to_list() == [1, 2, 3]


def test_a_later_import_keeps_the_numbers(tmp_path: Path) -> None:
    load(tmp_path)
    (tmp_path / "data").rename(tmp_path / "old")
    report = load(tmp_path, orders("aa@x.example,A-0,9", "al@x.example,L-2,9"), ids=tmp_path / "old")
    assert report.users == 2
    users, items = (pl.read_parquet(tmp_path / "data" / f"ids_{kind}s.parquet") for kind in ("user", "item"))
    assert users.rows() == [(1, "al@x.example"), (2, "bo@x.example"), (3, "aa@x.example")]
    assert items.rows() == [(1, "B-7"), (2, "L-1"), (3, "L-2"), (4, "A-0")]
    assert pl.read_parquet(tmp_path / "data" / "interactions.parquet").rows() == [(3, 4, 9), (1, 3, 9)]


def test_without_items_the_titles_are_the_ids(tmp_path: Path) -> None:
    load(tmp_path)
    assert read_folder(tmp_path / "data").items["title"].to_list() == ["B-7", "L-1", "L-2"]


def test_users_bring_categories(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("id,tier\nbo@x.example,gold\nzz@x.example,tin\nal@x.example,\n")
    load(tmp_path, users=tmp_path / "users.csv")
    users = read_folder(tmp_path / "data").users
    assert users is not None
    assert users.rows() == [(1, "unknown"), (2, "gold")]


@pytest.mark.parametrize(
    ("text", "items", "treated", "left"),
    [
        pytest.param(orders("u,a,5", "u,b,3", "u,c,9"), None, {"rows_out_of_order": 1}, "bac", id="unsorted"),
        pytest.param(orders("u,a,1", "u,a,1", "u,b,2"), None, {"duplicate_rows": 1}, "ab", id="duplicates"),
        pytest.param(orders("u,a,1", "u,b,2", "u,a,3"), None, {}, "aba", id="the same pair again"),
        pytest.param(orders("u,a,1", ",b,2", " ,b,2", "u,c,3"), None, {"rows_without_user": 2}, "ac", id="null users"),
        pytest.param(orders("u,a,1", "u,,2", "u,c,3"), None, {"rows_without_item": 1}, "ac", id="null items"),
        pytest.param(orders("u,a,1", "u,b,", "u,c,3"), None, {"rows_without_time": 1}, "ac", id="null times"),
        pytest.param(
            orders("u,a,1,4", "u,b,2,", "u,c,3,nan", "u,d,4,good", "u,e,5,1", header="user,item,time,rating"),
            None, {"rows_without_rating": 3}, "ae", id="ratings missing",
        ),
        pytest.param(orders("u,a,1", "u,b,2", "v,a,3"), None, {"users_not_evaluated": 2}, "aba", id="short users"),
        pytest.param(orders("u,a,1", "u,b,2"), "id,title\na,A\n", {"items_added": 1}, "ab", id="unknown items"),
        pytest.param(
            orders("u,a,1", "u,b,2"), "id,title\na,A\nb,B\nc,C\n", {"items_never_consumed": 1}, "ab",
            id="never consumed",
        ),
        pytest.param(
            orders("u,a,1", "u,b,2"), "id,title\na,A\n,X\na,A2\nb,B\n",
            {"item_rows_without_id": 1, "item_rows_repeated": 1}, "ab", id="items repeated",
        ),
        pytest.param(orders("u,a,1", "u,b,2"), "id,title\na,\nb, \n", {"titles_missing": 2}, "ab", id="titles missing"),
        pytest.param(
            orders("u,a,1", "u,b,2"), f"id,title,text\na,A,{'x' * 4_001}\nb,B,{'x' * 4_000}\n", {"texts_cut": 1}, "ab",
            id="long texts",
        ),
    ],
)  # fmt: skip
def test_bad_rows_are_treated_and_counted(
    tmp_path: Path, text: str, items: str | None, treated: dict[str, int], left: str
) -> None:
    report = load(tmp_path, text, items)
    counted = {name: count for name, count in report.treated.items() if count}
    if "users_not_evaluated" not in treated:
        counted.pop("users_not_evaluated", None)
    assert counted == treated
    originals = dict(pl.read_parquet(tmp_path / "data" / "ids_items.parquet").rows())
    table = pl.read_parquet(tmp_path / "data" / "interactions.parquet")
    assert "".join(originals[item] for item in table["item_id"]) == left
    assert report.interactions == len(left)


def test_every_treatment_is_shown_and_documented(tmp_path: Path) -> None:
    treated = set(load(tmp_path, items=PRODUCTS).treated)
    document = (Path(__file__).parents[2] / "docs" / "your-own-data.md").read_text()
    assert treated == set(TREATMENTS)
    assert not {name for name in treated if f"`{name}`" not in document}


def test_treated_items(tmp_path: Path) -> None:
    load(tmp_path, orders("u,a,1", "u,b,2", "u,d,3"), f"id,title,text\na,A,{'é' * 5_000}\nb,,\na,again,\nc,C,\n")
    items = read_folder(tmp_path / "data").items
    assert items["title"].to_list() == ["A", "b", "C", "d"]
    assert items["text"].to_list() == ["é" * 4_000, "", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "empty file; expected a header line", id="empty"),
        pytest.param("user,item,time\n", "no rows; expected at least one", id="header only"),
        pytest.param(orders(",a,1", "u,,1"), r"none of its 2 rows is left \(1 rows_without_user, 1", id="no row"),
        pytest.param(orders("u,a,1", "u,b,-5"), "1 times .* not between 1970 and 2100, such as '-5'", id="negative"),
        pytest.param(orders("u,a,1", "u,b,1700000000000"), "such as '17.*', read as epoch seconds", id="absurd time"),
        pytest.param(orders("u,a,2024-01-01", "u,b,1955-01-01"), "such as '1955-01-01', read as ISO", id="before 1970"),
        pytest.param(
            orders("u,a,2024-01-01", "u,b,2024-02-31", "u,c,soon"), "has 2 values like '2024-02-31'", id="no such day"
        ),
        pytest.param("user,item,time\nu,Café,1\n".encode("latin1"), "not UTF-8; convert it first: iconv", id="latin1"),
        pytest.param(orders("u,a,1,9"), "not readable as csv", id="ragged"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, text)
    assert [path.name for path in tmp_path.iterdir()] == ["orders.csv"], "something half-written was left behind"


def test_a_bad_item_file_leaves_the_old_data_alone(tmp_path: Path) -> None:
    load(tmp_path)
    before = (tmp_path / "data" / "items.parquet").read_bytes()
    with pytest.raises(DataError, match=r"products\.csv: not readable as csv: .* not UTF-8"):
        load(tmp_path, items="id,title\nL-1,Lamp\nL-2,Café\n".encode("latin1"))
    assert (tmp_path / "data" / "items.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "orders.csv", "products.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("orders.json", "ends in '.json'; expected .csv"), ("absent.csv", "is not a file; expected a table")],
)
def test_other_files_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "orders.json").write_text("[]")
    with pytest.raises(DataError, match=message):
        import_folder(tmp_path / name, tmp_path / "data")


def test_a_csv_named_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "orders.parquet").write_text(ORDERS)
    with pytest.raises(DataError, match="expected b'PAR1'; is it a CSV"):
        import_folder(tmp_path / "orders.parquet", tmp_path / "data")


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"holds thesis\.txt"):
        load(tmp_path)


MEASURE = """
import sys
from pathlib import Path
from fuserec.train.data import read_folder
from fuserec.train.importing import import_folder
folder = Path(sys.argv[1])
report = import_folder(folder / "orders.csv", folder / "data", items=folder / "items.csv")
read_folder(folder / "data")
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(report.treated["texts_cut"], int(peak) * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_texts(tmp_path: Path) -> None:
    """800 MB of text need half of that; polars keeps some 350 MB of a CSV in flight, however long it is."""
    n_items, characters, limit_bytes = 8_000, 100_000, 500 * 10**6
    text = "".join(chr(97 + n * n % 26) for n in range(characters))
    with (tmp_path / "items.csv").open("w") as file:
        file.write("item,title,text\n")
        for item in range(n_items):
            file.write(f"{item},Item {item},{item}{text}\n")
    (tmp_path / "orders.csv").write_text(orders(*(f"1,{item},{item}" for item in range(100))))
    size = (tmp_path / "items.csv").stat().st_size
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n_cut, peak_bytes = map(int, re.findall(r"\d+", done.stdout))
    assert n_cut == n_items
    assert peak_bytes < limit_bytes < size, f"{size:,} bytes of text took {peak_bytes:,} bytes of memory"
