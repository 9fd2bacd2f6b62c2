"""One search, for ncu to watch: `ncu --profile-from-start off ... python -m bench.device.profiled ROWS DIM K BATCH`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from bench.device.grid import Cell
from bench.device.profiles import _prepared


def main(arguments: Sequence[str]) -> int:
    """Search twice; the second is profiled."""
    rows, dim, k, batch = map(int, arguments)
    ours, queries = _prepared(Cell(rows, dim, k, batch), "cuda")
    torch.cuda.synchronize()
    with torch.cuda.profiler.profile():
        ours.search(queries, k, None)
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
