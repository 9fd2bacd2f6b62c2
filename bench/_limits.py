"""What the machine can do at most, measured in the run that it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

_READ_BYTES = 1 << 29
_PEAK_STEPS = 20_000
_PEAK_QUADS = 32


@numba.njit(nogil=True)
def _sum(values: Any) -> int:
    total = 0
    for value in values:
        total += value
    return total


def _fastest(call: Callable[[], object], repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bytes_a_second(threads: int) -> float:
    """Return how fast all threads together read memory that no cache holds."""
    from fuserec.kernels.search._threads import run

    parts = np.ones(_READ_BYTES // 8, np.int64).reshape(4 * threads, -1)
    return _READ_BYTES / _fastest(lambda: run(lambda part: _sum(parts[part]), len(parts), threads))


def multiply_adds_a_second(threads: int) -> float:
    """Return how fast all threads together go through int8 tiles that are in the first cache, with nothing else."""
    from fuserec.kernels._arrays import aligned_empty
    from fuserec.kernels.search._numba_tile import (
        TILE_GROUPS,
        TILE_ROWS,
        WEIGHT_DTYPE,
        WIDTHS,
        close_tiles,
        open_tiles,
        tile_sums,
    )
    from fuserec.kernels.search._threads import run

    width, columns = WIDTHS[-1], 4 * _PEAK_QUADS

    @numba.njit(nogil=True)
    def tiles(steps: int, codes: int, weights: int, biases: int, sums: int, config: Any) -> None:
        open_tiles(width, _PEAK_QUADS, config)
        for _ in range(steps):
            tile_sums(width, codes, weights, biases, _PEAK_QUADS, sums)
        close_tiles(width)

    codes = aligned_empty((TILE_GROUPS, _PEAK_QUADS, 64), np.uint8)
    weights, biases = aligned_empty((width, columns), WEIGHT_DTYPE), aligned_empty((width, 16), np.int32)
    codes[:], weights[:], biases[:] = 1, 1, 0
    sums = [aligned_empty((width, TILE_ROWS), np.int32) for _ in range(threads)]
    inputs = (codes.ctypes.data, weights.ctypes.data, biases.ctypes.data)

    def work(task: int) -> None:
        tiles(_PEAK_STEPS, *inputs, sums[task].ctypes.data, np.empty(64, np.uint8))

    return threads * _PEAK_STEPS * width * TILE_ROWS * columns / _fastest(lambda: run(work, threads, threads))


def hardware() -> str:
    """Return the name of the processor and the number of cores in use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names) or '?'} x {names[0] if names else 'unknown CPU'}"
