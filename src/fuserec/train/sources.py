"""Tables in files of anybody's making, Parquet or CSV, opened lazily: nothing is read before it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.untrusted.parquet import MAGIC, check_parquet

PARQUET_ENDINGS: Final = (".parquet", ".pq")
CSV_ENDINGS: Final = (".csv", ".tsv", ".txt")
SEPARATORS: Final = (",", "\t", ";", "|")


def scan(path: Path) -> pl.LazyFrame:
    """Open a table; in CSV every column is text, as a guessed type hides which value broke a column.

    A CSV may be separated by commas, tabs, semicolons or bars: whichever its header has most of.

    Raises:
        DataError: if the file is missing, empty, of another kind than its name says, or its header cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected a table, as .csv or .parquet")
    if path.suffix.lower() not in PARQUET_ENDINGS + CSV_ENDINGS:
        raise DataError(f"{path} ends in {path.suffix!r}; expected {', '.join(CSV_ENDINGS + PARQUET_ENDINGS)}")
    is_parquet = path.suffix.lower() in PARQUET_ENDINGS
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        header = magic + file.readline()
    if not header:
        raise DataError(f"{path}: empty file; expected {'a Parquet file' if is_parquet else 'a header line and rows'}")
    if is_parquet and magic != MAGIC:
        raise DataError(
            f"{path}: not readable as parquet: it begins with {magic!r}, expected {MAGIC!r}; "
            "is it a CSV? Then name it .csv"
        )
    if not is_parquet and magic == MAGIC:
        raise DataError(f"{path}: not readable as csv: it is a Parquet file; name it .parquet")
    if is_parquet:
        check_parquet(path, DataError)
    with reading(path):
        if is_parquet:
            table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        else:
            table = pl.scan_csv(path, glob=False, infer_schema=False, separator=_separator(header))
        table.collect_schema()
    return table


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a scanned file is read into a `DataError` that names it."""
    kind = "parquet" if path.suffix.lower() in PARQUET_ENDINGS else "csv"
    try:
        yield
    # A panic is what polars makes of a file that contradicts itself; to Python that is no `Exception`.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = str(error).partition("\n")[0]  # what follows is advice to programmers of polars
        if "utf-8" in reason.lower():
            name = path.name
            reason = (
                f"it holds bytes that are not UTF-8; convert it first: iconv -f latin1 -t utf-8 {name} > utf8-{name}"
            )
        raise DataError(f"{path}: not readable as {kind}: {reason}") from error


def cut(column: pl.Expr, max_chars: int) -> pl.Expr:
    """Cut texts to `max_chars` characters, as copies: a slice would keep alive all that was read to make it."""
    return pl.concat_str(column.str.slice(0, max_chars), pl.lit(""))


def _separator(header: bytes) -> str:
    return max(SEPARATORS, key=lambda separator: header.count(separator.encode()))  # the first one, where none occurs
