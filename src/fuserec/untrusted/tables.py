"""Tables in Parquet of anybody's making, read when they are found to be what is expected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fuserec.untrusted.parquet import check_parquet

if TYPE_CHECKING:
    import polars as pl


def read_table(
    path: Path,
    error: type[ValueError],
    *,
    columns: Mapping[str, pl.DataType] | None = None,
    optional: Mapping[str, pl.DataType] | None = None,
    others: bool = False,
    n_rows: int | None = None,
) -> pl.DataFrame:
    """Read a table after its footer, its schema and its number of rows were found to be as expected.

    Args:
        path: an ordinary file.
        error: what is raised.
        columns: those to read, and their types; all there are, of whatever type, where None.
        optional: those to read beside `columns` where the file has them, and their types.
        others: whether the file may have further ones, which are not read.
        n_rows: rows that the table must have.

    Raises:
        error: It is not a Parquet file, is truncated, is not what is expected, or is far larger than its file.
    """
    import polars as pl

    found = check_parquet(path, error).n_rows
    if n_rows is not None and found != n_rows:
        raise error(f"{path} has {found} rows; expected {n_rows}")
    with reading(path, error):
        # The name of the file is no pattern, and the folders above it are no columns.
        table = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = table.collect_schema()
    if columns is None:
        columns = schema
    columns = dict(columns) | {name: dtype for name, dtype in (optional or {}).items() if name in schema}
    _check_schema(path, schema, columns, others, error)
    with reading(path, error):
        return table.select(*columns).collect()


def _check_schema(
    path: Path,
    found: Mapping[str, pl.DataType],
    expected: Mapping[str, pl.DataType],
    others: bool,
    error: type[ValueError],
) -> None:
    came = {name: dtype for name, dtype in found.items() if name in expected} if others else dict(found)
    if came != dict(expected) or (not others and list(came) != list(expected)):
        raise error(f"{path} has columns {_describe(found)}; expected {_describe(expected)}")


def _describe(schema: Mapping[str, pl.DataType]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in schema.items()) or "none"


@contextlib.contextmanager
def reading(path: Path, error: type[ValueError], what: str = "parquet") -> Iterator[None]:
    """Turn what goes wrong inside polars into an error that names the file."""
    import polars as pl

    try:
        yield
    # To polars a file that contradicts itself is a fault of polars, and to Python such a panic is no `Exception`.
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as reason:
        first = str(reason).partition("\n")[0]  # what follows is advice to programmers of polars
        raise error(f"{path} is not readable as {what}: {first}") from reason


def require_no_nulls(path: Path, table: pl.DataFrame, error: type[ValueError], *names: str) -> None:
    """Raise unless the named columns of a table read from `path` have a value in every row, and in every list.

    Raises:
        error: Some value is missing.
    """
    for name in names:
        values = table[name]
        if hasattr(values.dtype, "inner"):
            inside = values.explode(empty_as_null=False, keep_nulls=False)
            missing = values.null_count() + inside.null_count()
        else:
            missing = values.null_count()
        if missing:
            raise error(f"{path}: column {name!r} has {missing} nulls; expected none")
