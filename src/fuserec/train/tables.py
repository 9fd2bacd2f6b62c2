"""One table of a data folder, Parquet or CSV, brought to its schema or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.train.sources import cut, reading, scan

LIST_SEPARATOR = "|"


@dataclass(frozen=True)
class Column:
    """What a column must hold.

    Attributes:
        dtype: the type it is brought to; any integer type is taken for an integer, any number for a float.
        required: whether the table is refused without it.
        nullable: whether single values may be missing.
        max_chars: texts are cut to so many characters while they are read, so that a file of long texts needs no
            memory of its size; None where they are not.
    """

    dtype: pl.DataType
    required: bool = True
    nullable: bool = False
    max_chars: int | None = None


AS_TEXT: Final = Column(pl.String(), nullable=True)


def read_table(folder: Path, name: str, columns: Mapping[str, Column], *, others: bool = False) -> pl.DataFrame:
    """Read `name`.parquet or `name`.csv, rows in the order of the file.

    Args:
        folder: the data folder.
        name: file name without its ending.
        columns: the columns by name.
        others: whether to take all other columns of the file too, as texts that may be missing.

    Returns:
        The named columns that are there, in the order of `columns`, then the others, each of exactly its dtype.

    Raises:
        DataError: if there is no such file or two of them, it cannot be read, is empty, lacks a column, or a column
            has the wrong type or nulls.
    """
    path = find_table(folder, name)
    if path is None:
        raise DataError(f"{folder} holds no {name} file; expected {name}.parquet or {name}.csv")
    source = scan(path)
    found = source.collect_schema()
    expected = ", ".join(f"{column} {spec.dtype}" for column, spec in columns.items() if spec.required)
    for column, spec in columns.items():
        if spec.required and column not in found:
            raise DataError(f"{path}: no column {column!r}; found {', '.join(found)}; expected {expected}")
    wanted = {column: spec for column, spec in columns.items() if column in found}
    if others:
        wanted |= {column: AS_TEXT for column in found if column not in wanted}
    with reading(path):
        table = source.select(_shortened(column, found[column], spec) for column, spec in wanted.items()).collect(
            engine="streaming"
        )
    if table.is_empty():
        raise DataError(f"{path}: no rows; expected at least one")
    return pl.DataFrame([_conform(path, table[column], spec) for column, spec in wanted.items()])


def find_table(folder: Path, name: str) -> Path | None:
    """Return `name`.parquet or `name`.csv of a folder, None where there is neither.

    Raises:
        DataError: if there are both.
    """
    found = [path for path in (folder / f"{name}.parquet", folder / f"{name}.csv") if path.is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds both {name}.parquet and {name}.csv; expected one of them")
    return found[0] if found else None


def _shortened(column: str, dtype: pl.DataType, spec: Column) -> pl.Expr:
    if spec is AS_TEXT:
        return pl.col(column).cast(pl.String)
    if spec.max_chars is None or dtype != pl.String:
        return pl.col(column)
    return cut(pl.col(column), spec.max_chars).alias(column)


def _conform(path: Path, values: pl.Series, spec: Column) -> pl.Series:
    where = f"{path}: column {values.name!r}"
    if path.suffix == ".csv" and spec.dtype == pl.List(pl.String):
        # "".split gives [""]; an empty field is an empty list.
        values = values.fill_null("").str.split(LIST_SEPARATOR).list.eval(pl.element().filter(pl.element() != ""))
    elif path.suffix != ".csv" and not _convertible(values.dtype, spec.dtype):
        raise DataError(f"{where} is {values.dtype}; expected {spec.dtype}{_remedy(values.dtype, spec.dtype)}")
    converted = values.cast(spec.dtype, strict=False)
    broken = converted.is_null() & values.is_not_null()
    if broken.any():
        first = values.filter(broken)[0]
        remedy = _remedy(values.dtype, spec.dtype)
        raise DataError(f"{where} has {broken.sum()} values like {first!r}; expected {spec.dtype}{remedy}")
    if converted.null_count() and not spec.nullable:
        raise DataError(f"{where} has {converted.null_count()} nulls; expected none")
    return converted


def _convertible(found: pl.DataType, expected: pl.DataType) -> bool:
    if expected.is_float():
        return found.is_numeric()
    if expected.is_integer():
        return found.is_integer()
    return found == expected or found == pl.Null or (expected == pl.String and found in (pl.Categorical, pl.Enum))


def _remedy(found: pl.DataType, expected: pl.DataType) -> str:
    """Name the command that numbers ids and converts times, where there are texts in place of numbers."""
    is_mendable = found == pl.String and expected == pl.Int64
    return "; `fuserec data import` numbers ids that are texts and reads dates" if is_mendable else ""
