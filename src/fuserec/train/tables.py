"""One table of a data folder, Parquet or CSV, brought to its schema or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from fuserec.errors import DataError

LIST_SEPARATOR = "|"


@dataclass(frozen=True)
class Column:
    """What a column must hold.

    Attributes:
        dtype: the type it is brought to; any integer type is taken for an integer, any number for a float.
        required: whether the table is refused without it.
        nullable: whether single values may be missing.
    """

    dtype: pl.DataType
    required: bool = True
    nullable: bool = False


def read_table(folder: Path, name: str, columns: Mapping[str, Column]) -> pl.DataFrame:
    """Read `name`.parquet or `name`.csv, rows in the order of the file.

    Args:
        folder: the data folder.
        name: file name without its ending.
        columns: the columns by name; others in the file are left out.

    Returns:
        The named columns that are there, in the order of `columns`, each of exactly its dtype.

    Raises:
        DataError: if there is no such file or two of them, it cannot be read, is empty, lacks a column, or a column
            has the wrong type or nulls.
    """
    path = _find(folder, name)
    table = _read(path)
    expected = ", ".join(f"{column} {spec.dtype}" for column, spec in columns.items() if spec.required)
    for column, spec in columns.items():
        if spec.required and column not in table.columns:
            raise DataError(f"{path}: no column {column!r}; found {', '.join(table.columns)}; expected {expected}")
    if table.is_empty():
        raise DataError(f"{path}: no rows; expected at least one")
    return pl.DataFrame(
        [_conform(path, table[column], spec) for column, spec in columns.items() if column in table.columns]
    )


def _find(folder: Path, name: str) -> Path:
    candidates = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    found = [path for path in candidates if path.is_file()]
    if not found:
        raise DataError(f"{folder} holds no {name} file; expected {name}.parquet or {name}.csv")
    if len(found) > 1:
        raise DataError(f"{folder} holds both {name}.parquet and {name}.csv; expected one of them")
    return found[0]


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        # Everything as text first: a guessed type hides which value broke the column.
        return pl.read_csv(path, infer_schema=False)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path}: empty file; expected a header line and rows") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error


def _conform(path: Path, values: pl.Series, spec: Column) -> pl.Series:
    where = f"{path}: column {values.name!r}"
    if path.suffix == ".csv" and spec.dtype == pl.List(pl.String):
        # "".split gives [""]; an empty field is an empty list.
        values = values.fill_null("").str.split(LIST_SEPARATOR).list.eval(pl.element().filter(pl.element() != ""))
    elif path.suffix != ".csv" and not _convertible(values.dtype, spec.dtype):
        raise DataError(f"{where} is {values.dtype}; expected {spec.dtype}")
    converted = values.cast(spec.dtype, strict=False)
    broken = converted.is_null() & values.is_not_null()
    if broken.any():
        first = values.filter(broken)[0]
        raise DataError(f"{where} has {broken.sum()} values like {first!r}; expected {spec.dtype}")
    if converted.null_count() and not spec.nullable:
        raise DataError(f"{where} has {converted.null_count()} nulls; expected none")
    return converted


def _convertible(found: pl.DataType, expected: pl.DataType) -> bool:
    if expected.is_float():
        return found.is_numeric()
    if expected.is_integer():
        return found.is_integer()
    return found == expected or found == pl.Null
