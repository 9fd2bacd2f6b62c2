"""What the GPU kernels compile to, for every architecture, on a machine that may have none of them.

    python -m bench.cubins [--cc 75 80 ...] [--match REGEX] [--csv FILE] [--check]

`--check` fails on a spill, on a table loaded in words of less than 16 bytes, and on a variant that is to use tensor
cores and does not.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.machine_code import Figures, figures
from fuserec.kernels.aot import COMPUTE_CAPABILITIES, Variant, variants

WIDEST_WORD_BYTES = 16
COLUMNS = ("cc", "variant", "registers", "spill_bytes", "shared_bytes", "occupancy", "table_load", "mma")


@dataclass(frozen=True)
class Row:
    """One variant on one architecture."""

    arch: int
    variant: Variant
    figures: Figures

    def cells(self) -> tuple[str, ...]:
        """Return the row as `COLUMNS` names them."""
        it = self.figures
        load = f"{'cp.async' if it.asynchronous else 'ld'} {it.load_bytes} B" if it.load_bytes else "-"
        mma = " ".join(f"{count} {name}" for name, count in it.mma.items()) or "-"
        sizes = (str(it.registers), str(it.spill_bytes), str(it.shared_bytes), f"{it.occupancy:.0%}")
        return (str(self.arch), self.variant.name, *sizes, load, mma)


def rows(archs: Sequence[int], match: str = "") -> Iterator[Row]:
    """Compile the variants whose names match, for each compute capability, on all cores."""
    wanted = [(arch, variant) for arch in archs for variant in variants(arch) if re.search(match, variant.name)]
    # Processes of their own: the compiler holds the lock of the interpreter for most of its time.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(_figures, arch, variant.name) for arch, variant in wanted]
        for (arch, variant), future in zip(wanted, found, strict=True):
            yield Row(arch, variant, future.result())


def _figures(arch: int, name: str) -> Figures:
    return figures(next(variant for variant in variants(arch) if variant.name == name), arch)


def faults(row: Row) -> list[str]:
    """Return what is wrong with the machine code; nothing, as a rule."""
    name, it = f"{row.variant.name} for compute capability {row.arch}", row.figures
    found = []
    if it.spill_bytes or it.spill_instructions:
        found.append(f"{name} spills {it.spill_bytes} bytes a thread, expected none")
    if row.variant.table and it.load_bytes < WIDEST_WORD_BYTES:
        found.append(f"{name} loads the table by {it.load_bytes} bytes a thread, expected {WIDEST_WORD_BYTES}")
    if row.variant.mma and not it.mma:
        found.append(f"{name} has no tensor-core instruction, expected some")
    if not it.occupancy:
        found.append(f"{name} takes {it.shared_bytes} bytes of shared memory, more than there are")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if `--check` found a fault."""
    parser = argparse.ArgumentParser(prog="python -m bench.cubins", description="What the GPU kernels compile to.")
    parser.add_argument("--cc", type=int, nargs="+", choices=COMPUTE_CAPABILITIES, default=COMPUTE_CAPABILITIES)
    parser.add_argument("--match", default="", help="regular expression that names of variants match")
    parser.add_argument("--csv", type=Path, help="write the table here too")
    parser.add_argument("--check", action="store_true", help="fail on spills, narrow table loads, missing MMA")
    options = parser.parse_args(arguments)
    table, wrong = [], []
    print(" | ".join(COLUMNS))
    for row in rows(options.cc, options.match):
        table.append(row.cells())
        wrong += faults(row)
        print(" | ".join(table[-1]), flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *table])
    for fault in wrong:
        print(fault, file=sys.stderr)
    return 1 if options.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
