"""Parquet of anybody's making: what it would take in memory is in its footer, and is looked at before it is read.

    "PAR1"  pages of the columns ...  footer  4 bytes: length of the footer, little-endian  "PAR1"

A page of one value said a million times over is a few bytes, so a small file can be made to fill any memory. How large
a table may be follows from the size of its file, as ids, which nearly every table has, hardly shrink.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fuserec.untrusted._thrift import Compact

if TYPE_CHECKING:
    import polars as pl

MAGIC: Final = b"PAR1"
# Catalogues and interactions that were tried take 8 to 30 times their file.
MAX_EXPANSION: Final = 256
# Whatever the expansion: every machine that this runs on has so much.
FREE_BYTES: Final = 256 * 2**20
# Some hundred bytes a column and row group: a table of 100 million items in groups of 10,000 has 10 MB.
MAX_FOOTER_BYTES: Final = 256 * 2**20
_TAIL_BYTES: Final = 8
_FIXED_LENGTH: Final = 7
# Bytes a value takes in memory by physical type; a text is a view of 16, beside the text itself.
_VALUE_BYTES: Final = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, 6: 16}
_OFFSET_BYTES: Final = 8  # of each row of a list


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says it holds.

    Attributes:
        n_rows: rows of the table.
        decoded_bytes: what it takes in memory, at least as the footer has it.
    """

    n_rows: int
    decoded_bytes: int


def read_table(
    path: Path,
    error: type[ValueError],
    *,
    columns: Mapping[str, pl.DataType] | None = None,
    others: bool = False,
    n_rows: int | None = None,
) -> pl.DataFrame:
    """Read a table after its footer, its schema and its number of rows were found to be as expected.

    Args:
        path: an ordinary file.
        error: what is raised.
        columns: those to read, and their types; all there are, of whatever type, where None.
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
        schema = pl.read_parquet_schema(path)
    if columns is not None:
        _check_schema(path, schema, columns, others, error)
    with reading(path, error):
        # The name of the file is no pattern, and the folders above it are no columns.
        return pl.read_parquet(
            path, columns=None if columns is None else list(columns), glob=False, hive_partitioning=False
        )


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


def check_parquet(path: Path, error: type[ValueError]) -> Footer:
    """Read the footer and check it against the size of the file; of the columns nothing is read.

    Raises:
        error: It is not a Parquet file, is truncated, points outside itself, or is far larger than its file.
    """
    if not path.is_file():
        raise error(f"{path} is missing or not a file; expected a Parquet file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
        length = int.from_bytes(tail[:4], "little")
        if head != MAGIC or tail[4:] != MAGIC:
            raise error(
                f"{path} is not readable as parquet: it begins with {head!r} and ends with {tail[4:]!r}; expected a Parquet file, "
                f"which does with {MAGIC!r}"
            )
        if length > min(size - len(MAGIC) - _TAIL_BYTES, MAX_FOOTER_BYTES):
            raise error(
                f"{path} has {size} bytes and says that its footer has {length}; expected at most "
                f"{MAX_FOOTER_BYTES}, and no more than there are; it may be truncated"
            )
        file.seek(size - _TAIL_BYTES - length)
        content = file.read(length)
    try:
        footer = _footer(Compact(content), size)
    except ValueError as reason:
        raise error(f"{path} has a footer that {reason}; expected that of a Parquet file") from reason
    allowed = max(FREE_BYTES, MAX_EXPANSION * size)
    if footer.decoded_bytes > allowed:
        raise error(
            f"{path} has {size} bytes and would take {footer.decoded_bytes} in memory; expected at most {allowed}, "
            f"{MAX_EXPANSION} times its size"
        )
    return footer


def _footer(footer: Compact, size: int) -> Footer:
    """Read a FileMetaData of `parquet.thrift`."""
    n_rows, in_groups, decoded, width = None, 0, 0, 0
    for number, kind in footer.fields():
        if number == 2:
            width = max((_type_length(footer) for _ in footer.structs(kind)), default=0)
        elif number == 3:
            n_rows = _size(footer.integer(kind), "rows")
        elif number == 4:
            for _ in footer.structs(kind):
                rows, taken = _row_group(footer, size, width)
                in_groups += rows
                decoded += taken
        else:
            footer.skip(kind)
    if n_rows is None or n_rows != in_groups:
        raise ValueError(f"says {n_rows} rows, and {in_groups} in its groups")
    return Footer(n_rows, decoded)


def _type_length(footer: Compact) -> int:
    """Read a SchemaElement."""
    length = 0
    for number, kind in footer.fields():
        if number == 2:
            length = _size(footer.integer(kind), "bytes of a value")
        else:
            footer.skip(kind)
    return length


def _row_group(footer: Compact, size: int, width: int) -> tuple[int, int]:
    """Read a RowGroup; return its rows and what it takes in memory."""
    rows, decoded, columns = 0, 0, 0
    for number, kind in footer.fields():
        if number == 1:
            for _ in footer.structs(kind):
                decoded += _column(footer, size, width)
                columns += 1
        elif number == 3:
            rows = _size(footer.integer(kind), "rows of a group")
        else:
            footer.skip(kind)
    return rows, decoded + columns * rows * _OFFSET_BYTES


def _column(footer: Compact, size: int, width: int) -> int:
    """Read a ColumnChunk; return what it takes in memory."""
    decoded = 0
    for number, kind in footer.fields():
        if number == 1:
            raise ValueError(f"points to another file, {footer.text(kind)[:80]!r}")
        if number == 3:
            decoded = _column_metadata(footer, size, width)
        else:
            footer.skip(kind)
    return decoded


# Fields of ColumnMetaData that are read: what they are called in `parquet.thrift`.
_COLUMN_FIELDS: Final = {
    1: "type", 5: "num_values", 6: "total_uncompressed_size", 7: "total_compressed_size", 9: "data_page_offset",
    11: "dictionary_page_offset",
}  # fmt: skip


def _column_metadata(footer: Compact, size: int, width: int) -> int:
    read: dict[str, int] = {}
    for number, kind in footer.fields():
        if name := _COLUMN_FIELDS.get(number):
            read[name] = _size(footer.integer(kind), name)
        else:
            footer.skip(kind)
    if missing := sorted(set(_COLUMN_FIELDS.values()) - read.keys() - {"dictionary_page_offset"}):
        raise ValueError(f"lacks the {missing[0]} of a column")
    start = min(read["data_page_offset"], read.get("dictionary_page_offset") or read["data_page_offset"])
    if start + read["total_compressed_size"] > size:
        raise ValueError(f"says that a column ends at byte {start + read['total_compressed_size']} of {size}")
    value_bytes = width if read["type"] == _FIXED_LENGTH else _VALUE_BYTES.get(read["type"])
    if value_bytes is None:
        raise ValueError(f"gives a column the unknown type {read['type']}")
    return read["num_values"] * value_bytes + read["total_uncompressed_size"]


def _size(value: int, name: str) -> int:
    if value < 0:
        raise ValueError(f"says {value} {name}")
    return value


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
