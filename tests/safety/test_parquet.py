"""A Parquet file is read only if what it claims fits the file."""

import gzip
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.errors import DataError
from fuserec.untrusted.parquet import check_parquet
from fuserec.untrusted.tables import read_table, require_no_nulls
from tests.safety.parquet_writer import GZIP, int64_file

COLUMNS = {"item_id": pl.Int64()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.parquet"


def test_honest_file_is_read(path: Path) -> None:
    path.write_bytes(int64_file())
    assert read_table(path, DataError, columns=COLUMNS, n_rows=3)["item_id"].to_list() == [1, 2, 3]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"row_group_size": 7}, id="many groups"),
        pytest.param({"compression": "gzip"}, id="gzip"),
        pytest.param({"compression": "uncompressed", "data_page_size": 64}, id="many pages"),
        pytest.param({"statistics": "full"}, id="statistics"),
    ],
)
def test_what_polars_writes_is_read(path: Path, options: dict[str, object]) -> None:
    table = pl.DataFrame(
        {
            "item_id": range(1000),
            "title": [f"title {row % 7} ü" for row in range(1000)],
            "genres": [["a", "b"][: row % 3] for row in range(1000)],
            "score": np.linspace(0, 1, 1000, dtype=np.float32),
            "seen": [row % 2 == 0 for row in range(1000)],
        }
    )
    table.write_parquet(path, **options)  # type: ignore[arg-type]
    assert read_table(path, DataError, columns=table.schema).equals(table)


def test_table_of_no_rows_is_a_table(path: Path) -> None:
    pl.DataFrame(schema=COLUMNS).write_parquet(path)
    assert read_table(path, DataError, columns=COLUMNS).height == 0


def test_name_of_the_file_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]=*"
    folder.mkdir()
    (folder / "x.parquet").write_bytes(int64_file())
    assert read_table(folder / "x.parquet", DataError).columns == ["item_id"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "begins with b''", id="empty"),
        pytest.param(b"PAR1", "has 4 bytes and says|begins with", id="magic alone"),
        pytest.param(b"PAR1PAR1", "says that its footer has", id="magic twice"),
        pytest.param(b"PK\x03\x04" + bytes(100), "begins with", id="zip"),
        pytest.param(b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1", "footer has 2147483647", id="2 GB footer"),
        pytest.param(b"PAR1" + b"\xff" * 40 + (40).to_bytes(4, "little") + b"PAR1", "unknown type 15", id="noise"),
        pytest.param(b"PAR1" + b"\x36" + b"\xff" * 40 + (41).to_bytes(4, "little") + b"PAR1", "64 bits", id="wide"),
        pytest.param(b"PAR1" + b"\x1c" * 40 + (40).to_bytes(4, "little") + b"PAR1", "deeper than 16", id="deep"),
        pytest.param(
            b"PAR1" + b"\x49\xfc\xff\xff\xff\xff\x7f" + (7).to_bytes(4, "little") + b"PAR1", "too early",
            id="a list of 34 billion",
        ),
        pytest.param(int64_file(page_bytes=2**31 - 1), "pages of .* bytes more than", id="2 GB page"),
        pytest.param(int64_file(page_bytes=-5), "uncompressed_page_size is -5", id="negative page"),
        pytest.param(int64_file(column_bytes=2**40), "would take 1099511627.* in memory", id="1 TB column"),
        pytest.param(int64_file(n_values=2**40), "would take .* in memory", id="2^40 values"),
        pytest.param(int64_file(n_rows=2**50), "would take .* in memory", id="2^50 rows"),
        pytest.param(int64_file(n_rows=-3), "num_rows is -3", id="negative rows"),
        pytest.param(int64_file(group_rows=4), "says 3 rows, and 4 in its groups", id="rows at odds"),
        pytest.param(int64_file(page_at=10**6), "from byte 1000000", id="outside"),
        pytest.param(int64_file(page_at=0), "from byte 0", id="on the magic"),
        pytest.param(int64_file(other_file=True), "in another file", id="another file"),
    ],
)  # fmt: skip
def test_claims_that_do_not_fit_are_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        check_parquet(path, DataError)


def test_page_that_unpacks_to_more_than_it_says_is_not_unpacked(path: Path) -> None:
    bomb = gzip.compress(bytes(2**26))
    path.write_bytes(int64_file(page=bomb, page_bytes=2**26, codec=GZIP))
    with pytest.raises(DataError, match="pages of .* bytes more than"):
        read_table(path, DataError)
    path.write_bytes(int64_file(page=gzip.compress(struct.pack("<3q", 4, 5, 6)), page_bytes=24, codec=GZIP))
    assert read_table(path, DataError)["item_id"].to_list() == [4, 5, 6]


def test_small_file_of_many_equal_values_is_refused(path: Path) -> None:
    pl.DataFrame({"item_id": np.zeros(50_000_000, dtype=np.int64)}).write_parquet(path)
    assert path.stat().st_size < 10**6
    with pytest.raises(DataError, match="would take .* in memory; expected at most 268435456"):
        read_table(path, DataError)


@pytest.mark.parametrize(
    ("columns", "n_rows", "message"),
    [
        pytest.param({"item_id": pl.Int32()}, None, "has columns item_id Int64; expected item_id Int32", id="type"),
        pytest.param({"user_id": pl.Int64()}, None, "expected user_id Int64", id="name"),
        pytest.param({}, None, "expected none", id="one too many"),
        pytest.param(COLUMNS, 4, "has 3 rows; expected 4", id="rows"),
    ],
)
def test_another_table_is_refused(
    path: Path, columns: dict[str, pl.DataType], n_rows: int | None, message: str
) -> None:
    path.write_bytes(int64_file())
    with pytest.raises(DataError, match=message):
        read_table(path, DataError, columns=columns, n_rows=n_rows)


def test_missing_values_are_counted(path: Path) -> None:
    table = pl.DataFrame({"a": [1, None], "b": [[1, None], []], "c": [[1], [2]]})
    require_no_nulls(path, table, DataError, "c")
    for name in ("a", "b"):
        with pytest.raises(DataError, match=f"column '{name}' has 1 nulls"):
            require_no_nulls(path, table, DataError, name)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("honest") / "table.parquet"
    pl.DataFrame({"item_id": [1, 2, 3], "genres": [["x"], [], ["x", "y"]]}).write_parquet(path)
    return path.read_bytes()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_file_is_a_table_or_refused(
    honest: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Polars panics over some of these, which would end a program that catches exceptions only."""
    at = data.draw(st.integers(0, len(honest) - 1))
    content = bytearray(honest)
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(content)
    try:
        read_table(path, DataError)
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("kept", range(0, 120, 7))
def test_truncated_file_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(int64_file()[:kept])
    with pytest.raises(DataError):
        read_table(path, DataError)
