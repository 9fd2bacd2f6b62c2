"""How a CPU search is cut into pieces; pure functions of its sizes, so that a choice can be tested and explained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

# Waking another thread costs tens of microseconds; below this many multiply-adds one thread is done sooner. Codes
# go through about eight times as fast as float32.
SERIAL_WORK: Final = {"rows": 1 << 19, "codes": 1 << 22}
# Codes of more bytes do not stay in a core's second cache. Then threads share the rows, up to so many queries: each
# reads a part of the table, so that together they read it once. Beyond, and in cache, threads share the queries, which
# spares the merge.
_CACHED_BYTES: Final = 1 << 21
MOST_QUERIES_BY_ROWS: Final = 128
# Queries that one part takes over the table: what bounds the memory for candidates.
_MOST_QUERIES: Final = {"cached": 32, "streamed": 128}
RESCORED_A_TASK: Final = 1 << 10  # rows: about a tenth of a millisecond
# Beyond this many multiply-adds, some 10 ms, there are two parts a thread, so that one that is held up does not keep
# the search waiting for all of its half.
_LONG_WORK: Final = 1 << 31
_SAMPLE_STRIDE: Final = 16
_SAMPLED_ROWS: Final = 1 << 15  # smaller tables are looked at whole


@dataclass(frozen=True)
class CpuConfig:
    """The parts of a CPU search; every pair of a query part and a row part is one task.

    Attributes:
        scan: "codes", or "rows": the float32 rows themselves.
        query_parts: Number of parts the batch is cut into.
        row_parts: Number of parts the item table is cut into; what they find is merged.
        tile: Queries that go over a tile of rows together.
        stride: Of this many tiles of rows one is in the sample that tells where the threshold will come to lie; 1 means
            that the sample is the table, and what it tells certain. Without a sample a query would have some ten times
            k candidates before its threshold has risen (N = 1M, k = 100).
        lanes: Maxima that the sample keeps for a query and a row part, a multiple of 16.
        capacity: Most candidates that are kept for a query and a part; when the codes leave more, the proof has failed
            and the query is searched again.
    """

    scan: Literal["codes", "rows"]
    query_parts: int
    row_parts: int
    tile: int
    stride: int
    lanes: int
    capacity: int

    def __post_init__(self) -> None:
        if min(self.query_parts, self.row_parts, self.tile, self.stride, self.capacity) < 1:
            raise ValueError(f"got {self}, expected at least one part of each, one query a tile and one candidate")
        if self.lanes < 16 or self.lanes % 16:
            raise ValueError(f"got {self}, expected a multiple of 16 lanes")


@functools.lru_cache(maxsize=1024)
def choose_cpu_config(
    batch: int, rows: int, dim: int, k: int, threads: int, *, has_codes: bool, widths: Sequence[int]
) -> CpuConfig:
    """Choose the scan and its parts.

    Codes narrow the rows down to somewhat more than k; where that is not much less than all, they are left alone.
    `widths`, ascending, are the tiles to choose from: the narrowest that takes all queries of a part, else the widest.
    """
    scan: Literal["codes", "rows"] = "codes" if has_codes and 4 * k <= rows else "rows"
    is_cached = rows * dim <= _CACHED_BYTES
    query_parts = row_parts = 1
    if batch * rows * dim >= SERIAL_WORK[scan] and threads > 1:
        parts = 2 * threads if batch * rows * dim >= _LONG_WORK else threads
        if batch < threads or (scan == "codes" and not is_cached and batch <= MOST_QUERIES_BY_ROWS):
            row_parts = min(parts, rows)
        else:
            query_parts = min(parts, batch)
    if scan == "codes" and row_parts == 1:
        query_parts = max(query_parts, -(-batch // _MOST_QUERIES["cached" if is_cached else "streamed"]))
    tile = next((width for width in widths if width * query_parts >= batch), widths[-1])
    # One query takes longer to read the codes than to score them, and should not do so twice.
    is_sampled = rows > 4 * k * _SAMPLE_STRIDE and (rows > _SAMPLED_ROWS or batch == 1)
    stride = _SAMPLE_STRIDE if is_sampled else 1
    # Maxima over several of the best rows hide all but one of them; with eight times as many as are asked for, few do.
    lanes = 16 * -(-max(8 * k // stride, 512) // (16 * row_parts))
    # Twice the rows are never filled by more than half, and so never overflow.
    return CpuConfig(scan, query_parts, row_parts, tile, stride, lanes, capacity=min(8 * k + 8192, 2 * rows))
