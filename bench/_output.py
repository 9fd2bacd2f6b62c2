"""How the benches write what they measured."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fuserec.files import replacing_file


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Let the user of a bench say where its rows go: `csv` and `json` of what is parsed, for `report`."""
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON in place of the table")


def log(line: str) -> None:
    """Print a line on stderr at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, at least one, with a heading; an older file is replaced in one step."""
    with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def report(rows: Iterable[dict[str, Any]], *, csv_path: Path | None, as_json: bool = False) -> list[dict[str, Any]]:
    """Print a line for each row as it is measured, and write all of them so far to the CSV file.

    Args:
        rows: of the same columns; iterating measures.
        csv_path: written after every row, so that a run cut short has what it measured.
        as_json: print the rows as JSON at the end; the lines go to stderr.

    Returns:
        The rows.
    """
    table: list[dict[str, Any]] = []
    for row in rows:
        width = max(13, *(len(text) + 2 for name, cell in row.items() for text in (name, str(cell))))
        for cells in [list(row.values())] if table else [list(row), list(row.values())]:
            line = "".join(("-" if cell is None else str(cell)).rjust(width) for cell in cells)
            if as_json:
                log(line)
            else:
                print(line, flush=True)
        table.append(row)
        if csv_path:
            write_csv(csv_path, table)
    if as_json:
        print(json.dumps(table, indent=1))
    return table
