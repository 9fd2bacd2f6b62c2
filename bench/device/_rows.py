"""Rows of a step: written to a CSV file as they are measured, read back with their types, and printed as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fuserec.files import replacing_file

Row = dict[str, Any]


class Rows:
    """The rows of one step; each is in the file as soon as it is measured, so that a step cut short has what it did.

    Args:
        path: CSV file; replaced in one step at every row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[Row] = []

    def add(self, **cells: Any) -> Row:
        """Add a row and write the file."""
        self.rows.append(cells)
        self.write()
        return cells

    def write(self) -> None:
        """Write the file."""
        write_rows(self._path, self.rows)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows that need not have the same cells; columns stand in the order of their first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file that `write_rows` wrote; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def table(rows: Sequence[Row], columns: Iterable[str] | None = None) -> list[str]:
    """Return lines of a table: numbers to the right, what is missing as `-`; columns that no row fills are left out."""
    names = [
        name
        for name in (columns or dict.fromkeys(name for row in rows for name in row))
        if any(row.get(name) is not None for row in rows)
    ]
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[at]) for line in [names, *cells]) for at in range(len(names))]
    numeric = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
    return [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [names, *cells]
    ]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)
