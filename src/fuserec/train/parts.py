"""A table in a folder of parts, as Spark, DuckDB and others write it: one file a part, all with the same columns.

events/_SUCCESS                          names that begin with _ or . are no parts
events/part-00000.parquet
events/day=2024-01-08/part-0.parquet     a folder NAME=VALUE is a column of what lies in it
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote

import polars as pl

from fuserec.errors import DataError
from fuserec.train.encodings import UTF8, as_utf8
from fuserec.train.sources import CSV_ENDINGS, PARQUET_ENDINGS, Source, first_bytes, open_source

NO_VALUE: Final = "__HIVE_DEFAULT_PARTITION__"


def open_table(path: Path, encoding: str | None, scratch: Path) -> tuple[Source, str]:
    """Open a file, or a folder of parts in the order of their names; return it and its encoding.

    Args:
        path: the file or folder.
        encoding: of its texts; None to look.
        scratch: folder for texts that are written anew in UTF-8; it must stay as long as the table is read.

    Raises:
        DataError: as `open_source`, or the parts differ.
    """
    if not path.is_dir():
        return _open(path, encoding, scratch)
    parts = [part for part in sorted(path.rglob("*")) if part.is_file() and not _is_hidden(part.relative_to(path))]
    endings = {part.suffix.lower() for part in parts}
    if not parts or not (endings <= set(PARQUET_ENDINGS) or endings <= set(CSV_ENDINGS)):
        found = ", ".join(sorted(endings)) or "no file"
        raise DataError(f"{path} is a folder of {found}; expected parts of one table, as .parquet or as .csv")
    tables, encodings = [], set()
    expected: pl.Schema | None = None
    for part in parts:
        source, found_encoding = _open(part, encoding, scratch)
        table = source.table.with_columns(**_columns_of_folders(part.parent.relative_to(path), part, source.table))
        schema = table.collect_schema()
        if expected is not None and schema != expected:
            raise DataError(
                f"{part} has columns {_told(schema)}; expected those of {parts[0]}: {_told(expected)}, as parts of one "
                "table have the same"
            )
        expected = expected or schema
        tables.append(table)
        encodings.add(found_encoding)
    return Source(path, pl.concat(tables)), ", ".join(sorted(encodings))


def _open(path: Path, encoding: str | None, scratch: Path) -> tuple[Source, str]:
    if path.suffix.lower() not in CSV_ENDINGS or not path.is_file():
        return open_source(path), UTF8
    first_bytes(path)
    utf8, found = as_utf8(path, encoding, scratch)
    return open_source(path, utf8), found


def _is_hidden(path: Path) -> bool:
    return any(name[0] in "_." for name in path.parts)


def _columns_of_folders(folders: Path, part: Path, table: pl.LazyFrame) -> dict[str, pl.Expr]:
    pairs = [name.partition("=") for name in folders.parts if "=" in name]
    columns = {unquote(name): pl.lit(unquote(value)) for name, _, value in pairs if value != NO_VALUE}
    columns |= {unquote(name): pl.lit(None, pl.String) for name, _, value in pairs if value == NO_VALUE}
    if twice := columns.keys() & set(table.collect_schema()):
        raise DataError(f"{part} has a column {min(twice)!r}, and so does the name of its folder; expected one of them")
    return columns


def _told(schema: pl.Schema) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in schema.items())
