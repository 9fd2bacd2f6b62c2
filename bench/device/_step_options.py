"""What every step is told on its command line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.device._rows import Rows


@dataclass(frozen=True)
class Told:
    """What a step was told.

    Attributes:
        out: Folder of the results.
        rows: Its rows, in a CSV file of its name.
        rehearse: There is no device: tiny sizes, interpreted kernels or the CPU's, every line of code the same.
        deadline: `time.monotonic()` at which it is to have ended of its own accord.
    """

    out: Path
    rows: Rows
    rehearse: bool
    deadline: float

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()


def told(name: str, about: str, arguments: Sequence[str] | None = None) -> Told:
    """Read the command line of the step `name`."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.device.{name}", description=about)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; NAME.csv is written there")
    parser.add_argument("--seconds", type=float, default=120.0, help="stop by then with what is measured (120)")
    parser.add_argument("--rehearse", action="store_true", help="without a device: tiny sizes, interpreted kernels")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    # A little earlier than it would be killed, so that its table is printed.
    deadline = time.monotonic() + 0.95 * options.seconds - 2.0
    return Told(options.out, Rows(options.out / f"{name}.csv"), options.rehearse, deadline)
