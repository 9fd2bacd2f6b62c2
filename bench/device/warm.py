"""Compiles what the timed cells need, in several processes, before anything is timed: the caches are on the disk.

python -m bench.device.warm ours PART PARTS     the search of every PARTS-th cell, over a million rows at most
python -m bench.device.warm compiled            torch.compile of the rivals: one process, as it times what it finds
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from bench.device import grid, tables
from bench.device._facts import ROOT
from bench.device.grid import Cell
from bench.device.rivals import KINDS, Rival, Tables
from bench.device.subject import subject

_WORKERS: Final = 6
_MOST_ROWS: Final = 1_000_000  # the tiles do not depend on more


def warm(seconds: float) -> float:
    """Start the processes and wait for them, no longer than `seconds`; return the seconds it took."""
    start = time.monotonic()
    parts = [["ours", str(part), str(_WORKERS)] for part in range(_WORKERS)]
    running = [
        subprocess.Popen([sys.executable, "-m", "bench.device.warm", *part], cwd=ROOT, stdout=subprocess.DEVNULL)
        for part in [["compiled"], *parts]
    ]
    try:
        while time.monotonic() - start < seconds and any(process.poll() is None for process in running):
            time.sleep(0.2)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
    return time.monotonic() - start


def ours(cells: Sequence[Cell], device: str) -> None:
    """Search every cell once from the host and once on the device."""
    for cell in cells:
        rows = tables.normal_rows(min(cell.rows, _MOST_ROWS), cell.dim, getattr(torch, cell.dtype), device)
        made = subject(rows, "device", device)
        queries = np.random.default_rng(1).standard_normal((cell.batch, cell.dim), dtype=np.float32)
        excluded = np.arange(cell.batch * cell.excluded).reshape(cell.batch, -1) % len(rows) if cell.excluded else None
        made.search(queries, cell.k, excluded)
        there = None if excluded is None else torch.from_numpy(excluded).to(device)
        made.work(torch.from_numpy(queries).to(device), cell.k, there)


def compiled(cells: Sequence[Cell], device: str) -> None:
    """Compile the rivals of the cells that have one, at their own size."""
    kind = next(kind for kind in KINDS if kind.compiled)
    for cell in cells:
        if cell.compiled and cell.place == "device":
            rows = tables.normal_rows(cell.rows, cell.dim, torch.float16, device)
            Rival(kind, Tables(rows).of(kind.dtype), cell.batch, cell.k, None, device)


def needed() -> list[Cell]:
    """Return the cells of the aims and those around them, each shape of a search once."""
    cells = grid.cells()[:80]
    return list(dict.fromkeys(replace(cell, rows=min(cell.rows, _MOST_ROWS), place="device") for cell in cells))


def main(arguments: Sequence[str]) -> int:
    """Do one part."""
    what, *rest = arguments
    if what == "compiled":
        compiled(grid.aimed(), "cuda")
    else:
        part, parts = map(int, rest)
        ours(needed()[part::parts], "cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
