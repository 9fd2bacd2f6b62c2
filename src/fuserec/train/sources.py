"""Tables in files of anybody's making, Parquet or CSV, opened lazily: nothing is read before it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.train.csv_layout import Layout, read_layout
from fuserec.train.encodings import UTF8, found_encoding
from fuserec.untrusted.parquet import MAGIC, check_parquet

PARQUET_ENDINGS: Final = (".parquet", ".pq")
CSV_ENDINGS: Final = (".csv", ".tsv", ".txt")
_KNOWN: Final = ", ".join(CSV_ENDINGS + PARQUET_ENDINGS)
# What a file begins with that is often taken for a CSV.
_OTHERS: Final = (
    (b"\x1f\x8b", "compressed by gzip; unpack it first: gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first: unzstd"),
    (b"BZh91AY&", "compressed by bzip2; unpack it first: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz; unpack it first: unxz"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook; unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save it as CSV"),
)
_COMPRESSED: Final = (".gz", ".zst", ".bz2", ".xz", ".zip", ".xls", ".xlsx")


@dataclass(frozen=True)
class Source:
    """A table, opened.

    Attributes:
        path: what messages call it.
        table: its rows in the order of the file; in CSV every column is text, as a guessed type hides which value
            broke a column.
        layout: how it is laid out; None for Parquet.
    """

    path: Path
    table: pl.LazyFrame
    layout: Layout | None = None


def scan(path: Path) -> pl.LazyFrame:
    """Open the table of a file; see `open_source`."""
    return open_source(path).table


def open_source(path: Path, utf8: Path | None = None) -> Source:
    """Open a table.

    A CSV may be separated by commas, tabs, semicolons or bars: whichever its header has most of.

    Args:
        path: the file.
        utf8: what holds the same text in UTF-8, if not `path`.

    Raises:
        DataError: if the file is missing, empty, of another kind than its name says, or laid out as no table.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a table, as .csv or .parquet")
    is_parquet = path.suffix.lower() in PARQUET_ENDINGS
    magic = first_bytes(path)
    if path.suffix.lower() not in PARQUET_ENDINGS + CSV_ENDINGS:
        hint = ", unpacked" if path.suffix.lower() in _COMPRESSED else ""
        raise DataError(f"{path} ends in {path.suffix!r}; expected {_KNOWN}{hint}")
    if not magic:
        raise DataError(f"{path}: empty file; expected {'a Parquet file' if is_parquet else 'a header line and rows'}")
    if is_parquet:
        return Source(path, _scan_parquet(path, magic[: len(MAGIC)]))
    if magic.startswith(MAGIC):
        raise DataError(f"{path}: not readable as csv: it is a Parquet file; name it .parquet")
    if utf8 is None and (found := found_encoding(path)) != UTF8:
        raise DataError(
            f"{path}: not readable as csv: it is {found.upper()}; convert it first: iconv -f {found} -t utf-8 "
            f"{path.name} > utf8-{path.name}"
        )
    return _scan_csv(path, utf8 or path)


def first_bytes(path: Path) -> bytes:
    """Return the first 8 bytes of a file.

    Raises:
        DataError: They are those of an archive or of a workbook.
    """
    with path.open("rb") as file:
        magic = file.read(8)
    for start, what in _OTHERS:
        if magic.startswith(start):
            raise DataError(f"{path} is {what}")
    return magic


def _scan_parquet(path: Path, magic: bytes) -> pl.LazyFrame:
    if magic != MAGIC:
        raise DataError(
            f"{path}: not readable as parquet: it begins with {magic!r}, expected {MAGIC!r}; "
            "is it a CSV? Then name it .csv"
        )
    check_parquet(path, DataError)
    with reading(path):
        table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        table.collect_schema()
    return table


def _scan_csv(path: Path, utf8: Path) -> Source:
    try:
        layout = read_layout(utf8)
    except DataError as error:
        raise DataError(str(error).replace(str(utf8), str(path))) from None
    with reading(path):
        table = pl.scan_csv(
            utf8, glob=False, infer_schema=False, separator=layout.separator, quote_char=layout.quote,
            new_columns=list(layout.columns),
        )  # fmt: skip
        table.collect_schema()
        # Counted in what is parsed: the length alone is taken from a scan of its own, which holds the whole file.
        found = table.select(pl.first().count() + pl.first().null_count()).collect(engine="streaming").item()
    if found != layout.records:  # not a row may vanish
        raise DataError(f"{path}: {found} rows were read of {layout.records} that there are; expected all")
    return Source(path, table, layout)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a scanned file is read into a `DataError` that names it."""
    kind = "csv" if path.suffix.lower() in CSV_ENDINGS else "parquet"
    try:
        yield
    # A panic is what polars makes of a file that contradicts itself; to Python that is no `Exception`.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).partition("\n")[0]  # what follows is advice to programmers of polars
        raise DataError(f"{path}: not readable as {kind}: {reason}") from error


def cut(column: pl.Expr, max_chars: int) -> pl.Expr:
    """Cut texts to `max_chars` characters, as copies: a slice would keep alive all that was read to make it."""
    return pl.concat_str(column.str.slice(0, max_chars), pl.lit(""))
