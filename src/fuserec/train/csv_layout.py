"""How a CSV is laid out: separator, header, and whether its quotes are quotes; every record is counted.

A field in quotes may hold separators, line breaks and doubled quotes (RFC 4180). Exports of other tools leave quotes as
they are (`24" monitor`), and a reader that takes such a quote for the beginning of a field swallows the lines up to the
next one. So each quote is looked at before anything is read:

    opens    after a separator, a line break or a quote      a,"b
    closes   before a separator, a line break or a quote     b",c

Where one does neither, or lines have the right number of fields only if quotes are ordinary characters, they are taken
for ordinary characters. Where that fits no better, the file is refused with the line.
"""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import DataError

SEPARATORS: Final = (",", "\t", ";", "|")
MAX_HEADER_BYTES: Final = 2**20
MAX_HEADER_LINES: Final = 16
_CHUNK_BYTES: Final = 4 * 2**20
_QUOTE, _NEWLINE, _RETURN = (ord(char) for char in '"\n\r')

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """What a reader of the file must be told, and what it must find.

    Attributes:
        separator: one of `SEPARATORS`.
        columns: the names in the header.
        quote: the quote character; None where quotes are ordinary characters.
        records: below the header, empty lines included.
        blank: of these, empty lines.
        short: of these, with fewer fields than the header.
        multiline: quoted fields with line breaks in them.
    """

    separator: str
    columns: tuple[str, ...]
    quote: str | None
    records: int
    blank: int
    short: int
    multiline: int


def read_layout(path: Path) -> Layout:
    """Look through a CSV in UTF-8.

    Raises:
        DataError: It is not UTF-8, has no header, a column twice, a line with more fields than the header, or quotes
            of which nothing can be made; the message names the line.
    """
    separator, columns, start = _header(path)
    literal, quoted = _Tally(len(columns) - 1), _Tally(len(columns) - 1)
    quotes = _walk(path, start, separator, literal, quoted)
    if quotes.bad_line is None and not (quotes.multiline and literal.is_regular):
        chosen, quote = quoted, '"'
    elif literal.is_regular:
        chosen, quote = literal, None
    else:
        raise DataError(
            f"{path}: line {quotes.bad_line}: a quote that is neither around a whole field nor doubled within one; "
            'expected fields such as "24"" monitor", or no quotes at all'
        )
    if chosen.first_long is not None:
        line, found = chosen.first_long
        raise DataError(
            f"{path}: not readable as csv: line {line} has {found} fields and the header {len(columns)}; expected as "
            f"many, separated by {separator!r}"
        )
    multiline = quotes.multiline if quote else 0
    return Layout(separator, columns, quote, chosen.records, chosen.blank, chosen.short, multiline)


@dataclass
class _Tally:
    """Counts records whose fields are separated by so many separators."""

    expected: int
    records: int = 0
    blank: int = 0
    short: int = 0
    first_long: tuple[int, int] | None = None
    _separators: int = 0  # of the record that the last chunk ended in
    _bytes: int = 0

    @property
    def is_regular(self) -> bool:
        """Whether every record has as many fields as the header."""
        return self.first_long is None and not self.short

    def add(self, separators: Positions, ends: Positions, lines: Positions, returns: Positions, size: int) -> None:
        """Add a chunk.

        Args:
            separators: their positions.
            ends: positions of the newlines that end records.
            lines: of each of these, the line.
            returns: of each of these, 1 where a carriage return stands before it, else 0.
            size: bytes of the chunk.
        """
        before = np.searchsorted(separators, ends)
        counts = np.diff(before, prepend=0)
        lengths = np.diff(ends, prepend=-1) - 1 - returns
        if counts.size:
            counts[0] += self._separators
            lengths[0] += self._bytes
            self._separators = self._bytes = 0
            self._close(counts, lengths, lines)
        self._separators += len(separators) - int(before[-1] if before.size else 0)
        self._bytes += size - (int(ends[-1]) + 1 if ends.size else 0)

    def finish(self, line: int) -> None:
        """End the last record, where no newline does."""
        if self._bytes:
            self._close(np.array([self._separators]), np.array([self._bytes]), np.array([line]))

    def _close(self, counts: Positions, lengths: Positions, lines: Positions) -> None:
        is_blank = lengths <= 0
        self.records += len(counts)
        self.blank += int(is_blank.sum())
        self.short += int(((counts < self.expected) & ~is_blank).sum())
        long = np.flatnonzero(counts > self.expected)
        if long.size and self.first_long is None:
            self.first_long = int(lines[long[0]]), int(counts[long[0]]) + 1


@dataclass
class _Quotes:
    """The quotes of a file up to some chunk."""

    bad_line: int | None = None
    multiline: int = 0
    inside: bool = False
    _before: int = _NEWLINE  # the byte before the chunk
    _opened: int = 0  # the line in which the field begins that the chunk begins in

    def add(self, data: NDArray[np.uint8], separator: int, newlines: Positions, line: int) -> NDArray[np.bool_] | None:
        """Add a chunk that begins in line `line`; return for each byte whether it is inside quotes, None for none."""
        places = np.flatnonzero(data == _QUOTE)
        if self._before == _QUOTE and not self.inside and data[0] not in (separator, _NEWLINE, _RETURN, _QUOTE):
            self._bad(line)
        if not places.size:
            self._before = int(data[-1])
            return np.ones(len(data), np.bool_) if self.inside else None
        inside = np.logical_xor.accumulate(data == _QUOTE) ^ self.inside
        opens = inside[places]
        ahead = np.append(data, np.uint8(_NEWLINE))[places + 1]
        behind = np.concatenate([[np.uint8(self._before)], data])[places]
        neighbour = np.where(opens, behind, ahead)
        is_good = np.isin(neighbour, [separator, _NEWLINE, _QUOTE]) | (~opens & (neighbour == _RETURN))
        lines = line + np.searchsorted(newlines, places)
        if not is_good.all():
            self._bad(int(lines[np.flatnonzero(~is_good)[0]]))
        began = lines[opens] if not self.inside else np.concatenate([[self._opened], lines[opens]])
        ended = lines[~opens]
        self.multiline += int((began[: len(ended)] != ended).sum())
        if len(began) > len(ended):
            self._opened = int(began[-1])
        self.inside, self._before = bool(inside[-1]), int(data[-1])
        return inside

    def finish(self) -> None:
        """The file ends."""
        if self.inside:
            self._bad(self._opened)

    def _bad(self, line: int) -> None:
        if self.bad_line is None:
            self.bad_line = line


def _walk(path: Path, start: int, separator: str, literal: _Tally, quoted: _Tally) -> _Quotes:
    """Read the file from byte `start`, where line 2 or a later one begins, and tally it both ways."""
    quotes, decoder = _Quotes(), codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        line = 1 + file.read(start).count(b"\n")
        last = _NEWLINE
        while chunk := file.read(_CHUNK_BYTES):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise not_utf8(path, error, line) from error
            data = np.frombuffer(chunk, np.uint8)
            newlines = np.flatnonzero(data == _NEWLINE)
            separators = np.flatnonzero(data == ord(separator))
            returns = (np.concatenate([[np.uint8(last)], data])[newlines] == _RETURN).astype(np.int64)
            lines = line + np.arange(len(newlines))
            literal.add(separators, newlines, lines, returns, len(data))
            inside = quotes.add(data, ord(separator), newlines, line)
            if inside is not None:
                ends = ~inside[newlines]
                separators, newlines, lines, returns = (
                    separators[~inside[separators]], newlines[ends], lines[ends], returns[ends]
                )  # fmt: skip
            quoted.add(separators, newlines, lines, returns, len(data))
            line, last = line + chunk.count(b"\n"), chunk[-1]
    for tally in (literal, quoted):
        tally.finish(line)
    quotes.finish()
    return quotes


def _header(path: Path) -> tuple[str, tuple[str, ...], int]:
    """Return separator, names, and the byte after the header; empty lines before it are passed over."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    while head[start : start + 1] in (b"\n", b"\r"):
        start += 1
    line = _first_record(head[start:])
    stop = start + len(line)
    if b"\r" in line.rstrip(b"\r\n"):
        raise DataError(f"{path}: lines end in \\r alone; expected \\n or \\r\\n: tr '\\r' '\\n' < FILE > FILE.csv")
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, 1) from error
    separator = max(SEPARATORS, key=text.count)  # the first one, where none occurs
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
    except csv.Error as error:
        raise DataError(f"{path}: not readable as csv: its header is none ({error})") from error
    names = [name.strip() or f"column {place}" for place, name in enumerate(names, start=1)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(
            f"{path}: {len(twice)} column names stand there twice, such as {min(twice)!r}; expected each once"
        )
    return separator, tuple(names), stop


def _first_record(head: bytes) -> bytes:
    """Return the first line, and those after it that a quoted name goes over."""
    lines, quotes = list(io.BytesIO(head)), 0
    for place, line in enumerate(lines[:MAX_HEADER_LINES], start=1):
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            return b"".join(lines[:place])
    return lines[0] if lines else b""


def not_utf8(path: Path, error: UnicodeDecodeError, line: int) -> DataError:
    """Return the error for bytes that are not UTF-8; the chunk that they are in begins in line `line`."""
    found = error.object[error.start]
    at = line + error.object[: error.start].count(b"\n")
    # Bytes that Latin-1 has no characters for are punctuation in Windows' code page.
    codec = "cp1252" if any(0x80 <= byte < 0xA0 for byte in error.object) else "latin1"
    return DataError(
        f"{path}: not readable as csv: it holds bytes that are not UTF-8; convert it first: iconv -f {codec} -t utf-8 "
        f"{path.name} > utf8-{path.name}, or give fuserec data import --encoding {codec}; the first is 0x{found:02x} "
        f"in line {at}"
    )
