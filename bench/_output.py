"""How the benches write what they measured."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuserec.files import replacing_file


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
