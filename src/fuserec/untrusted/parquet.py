"""Parquet of anybody's making: what it says it holds, against the size of the file, before a column is read.

    "PAR1"  columns, each in pages ...  footer  4 bytes: length of the footer, little-endian  "PAR1"

A page of one value said a million times over is a few bytes, so a small file can be made to fill any memory. How large
a table may be follows from the size of its file, as ids, which nearly every table has, hardly shrink. Readers set aside
what each page claims to need, so the pages are added up too. Format: Apache Parquet, `parquet.thrift`.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.untrusted._thrift import Compact

MAGIC: Final = b"PAR1"
# By this estimate, which is on the safe side, the catalogues and interactions that were tried take 10 to 100 times
# their file.
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
# Fields of ColumnMetaData and of PageHeader that are read.
_COLUMN_FIELDS: Final = {
    1: "type", 5: "num_values", 6: "total_uncompressed_size", 7: "total_compressed_size", 9: "data_page_offset",
    11: "dictionary_page_offset",
}  # fmt: skip
_PAGE_FIELDS: Final = {2: "uncompressed_page_size", 3: "compressed_page_size"}


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says it holds.

    Attributes:
        n_rows: rows of the table.
        decoded_bytes: what it takes in memory, texts that are said more than once counted once.
    """

    n_rows: int
    decoded_bytes: int


def check_parquet(path: Path, error: type[ValueError]) -> Footer:
    """Read the footer and the headers of the pages, and check them against the size of the file.

    Raises:
        error: It is not a Parquet file, is truncated, points outside itself, or is far larger than its file.
    """
    if not path.is_file():
        raise error(f"{path} is missing or not a file; expected a Parquet file")
    with path.open("rb") as file:
        head = file.read(len(MAGIC))
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
        if head != MAGIC or tail[4:] != MAGIC:
            raise error(
                f"{path} is not readable as parquet: it begins with {head!r} and ends with {tail[4:]!r}; "
                f"expected {MAGIC!r} twice"
            )
        stop, length = size - _TAIL_BYTES, int.from_bytes(tail[:4], "little")
        if length > min(stop - len(MAGIC), MAX_FOOTER_BYTES):
            raise error(
                f"{path} has {size} bytes and says that its footer has {length}; expected at most "
                f"{MAX_FOOTER_BYTES}, and no more than there are; it may be truncated"
            )
        try:
            with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data:
                footer = _Reader(data, stop - length, stop).footer()
        except ValueError as reason:
            raise error(f"{path} is not readable as parquet: it {reason}") from reason
    allowed = max(FREE_BYTES, MAX_EXPANSION * size)
    if footer.decoded_bytes > allowed:
        raise error(
            f"{path} has {size} bytes and would take {footer.decoded_bytes} in memory; expected at most {allowed}, "
            f"{MAX_EXPANSION} times its size"
        )
    return footer


class _Reader:
    """A footer being read; the methods are named for the structs of `parquet.thrift`."""

    def __init__(self, data: mmap.mmap, start: int, stop: int) -> None:
        self._data = data
        self._start = start
        self._left = start  # bytes that columns may still have
        self._thrift = Compact(data, start, stop)
        self._width = 0

    def footer(self) -> Footer:
        n_rows, in_groups, decoded = None, 0, 0
        for number, kind in self._thrift.fields():
            if number == 2:
                self._width = max((self._type_length() for _ in self._thrift.structs(kind)), default=0)
            elif number == 3:
                n_rows = _size(self._thrift.integer(kind), "num_rows")
            elif number == 4:
                for _ in self._thrift.structs(kind):
                    rows, taken = self._row_group()
                    in_groups += rows
                    decoded += taken
            else:
                self._thrift.skip(kind)
        if n_rows is None or n_rows != in_groups:
            raise ValueError(f"says {n_rows} rows, and {in_groups} in its groups")
        return Footer(n_rows, decoded)

    def _type_length(self) -> int:
        return self._read({2: "type_length"}).get("type_length", 0)

    def _row_group(self) -> tuple[int, int]:
        """Return its rows and what it takes in memory."""
        rows, decoded, columns = 0, 0, 0
        for number, kind in self._thrift.fields():
            if number == 1:
                for _ in self._thrift.structs(kind):
                    decoded += self._column_chunk()
                    columns += 1
            elif number == 3:
                rows = _size(self._thrift.integer(kind), "num_rows of a group")
            else:
                self._thrift.skip(kind)
        return rows, decoded + columns * rows * _OFFSET_BYTES

    def _column_chunk(self) -> int:
        decoded = 0
        for number, kind in self._thrift.fields():
            if number == 1:
                raise ValueError("has a column in another file; expected all in this one")
            if number == 3:
                decoded += self._column_metadata()
            else:
                self._thrift.skip(kind)
        return decoded

    def _column_metadata(self) -> int:
        read = self._read(_COLUMN_FIELDS)
        if missing := sorted(set(_COLUMN_FIELDS.values()) - read.keys() - {"dictionary_page_offset"}):
            raise ValueError(f"lacks the {missing[0]} of a column")
        value_bytes = self._width if read["type"] == _FIXED_LENGTH else _VALUE_BYTES.get(read["type"])
        if value_bytes is None:
            raise ValueError(f"has a column of the unknown type {read['type']}")
        # Offset 0, where the magic is, stands for no dictionary.
        start = min(read["data_page_offset"], read.get("dictionary_page_offset") or read["data_page_offset"])
        self._check_pages(start, start + read["total_compressed_size"], read["total_uncompressed_size"])
        return read["num_values"] * value_bytes + read["total_uncompressed_size"]

    def _check_pages(self, start: int, stop: int, uncompressed: int) -> None:
        self._left -= stop - start
        if start < len(MAGIC) or stop > self._start or self._left < 0:
            raise ValueError(
                f"has a column from byte {start} to {stop}; expected columns beside each other, before {self._start}"
            )
        pages, at = Compact(self._data, start, self._start), start
        while at < stop:
            page = self._read(_PAGE_FIELDS, pages)
            if page.keys() != set(_PAGE_FIELDS.values()):
                raise ValueError(f"has no page at byte {at}, where one is expected")
            uncompressed -= page["uncompressed_page_size"]
            if uncompressed < 0:
                raise ValueError(f"has pages of {-uncompressed} bytes more than it says of their column")
            pages.at = at = pages.at + page["compressed_page_size"]
        if at > self._start:
            raise ValueError(f"has a page up to byte {at}; expected it to end before the footer, {self._start}")

    def _read(self, fields: dict[int, str], thrift: Compact | None = None) -> dict[str, int]:
        """Read of a struct the named fields, sizes all of them."""
        thrift = thrift or self._thrift
        read: dict[str, int] = {}
        for number, kind in thrift.fields():
            if name := fields.get(number):
                read[name] = _size(thrift.integer(kind), name)
            else:
                thrift.skip(kind)
        return read


def _size(value: int, name: str) -> int:
    if value < 0:
        raise ValueError(f"says that {name} is {value}; expected no less than 0")
    return value
