"""How a CPU search is cut into pieces; pure functions of its sizes, so that a choice can be tested and explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# Waking another thread costs tens of microseconds; below this many multiply-adds one thread is done sooner. Codes
# go through about eight times as fast as float32.
SERIAL_WORK: Final = {"rows": 1 << 19, "codes": 1 << 22}
# Up to here threads share the rows: each reads a part of the table, so that together they read it once. Beyond, the
# work on a row that is in cache outweighs reading it, and a part of the queries each spares the merge.
MOST_QUERIES_BY_ROWS: Final = 64
RESCORED_A_TASK: Final = 1 << 10  # rows: about a tenth of a millisecond
# Beyond this many multiply-adds, some 10 ms, there are two parts a thread, so that one that is held up does not keep
# the search waiting for all of its half.
_LONG_WORK: Final = 1 << 31
QUERIES_AT_ONCE: Final = 512  # searched in one go: what bounds the memory for candidates


@dataclass(frozen=True)
class CpuConfig:
    """The parts of a CPU search; every pair of a query part and a row part is one task.

    Attributes:
        scan: "codes", or "rows": the float32 rows themselves.
        query_parts: Number of parts the batch is cut into.
        row_parts: Number of parts the item table is cut into; what they find is merged.
        capacity: Most candidates that are kept for a query and a part; when the codes leave more, the proof has failed
            and the query is searched again.
    """

    scan: Literal["codes", "rows"]
    query_parts: int
    row_parts: int
    capacity: int

    def __post_init__(self) -> None:
        if self.query_parts < 1 or self.row_parts < 1 or self.capacity < 1:
            raise ValueError(f"got {self}, expected at least one part of each and one candidate")


def choose_cpu_config(batch: int, rows: int, dim: int, k: int, threads: int, *, has_codes: bool) -> CpuConfig:
    """Choose the scan and its parts.

    Codes narrow the rows down to somewhat more than k; where that is not much less than all, they are left alone.
    """
    scan: Literal["codes", "rows"] = "codes" if has_codes and 4 * k <= rows else "rows"
    # Twice the rows are never filled by more than half, and so never overflow.
    capacity = min(8 * k + 8192, 2 * rows)
    if batch * rows * dim < SERIAL_WORK[scan] or threads == 1:
        return CpuConfig(scan, query_parts=1, row_parts=1, capacity=capacity)
    parts = 2 * threads if batch * rows * dim >= _LONG_WORK else threads
    by_rows = batch < threads or (scan == "codes" and batch <= MOST_QUERIES_BY_ROWS)
    if by_rows:
        return CpuConfig(scan, query_parts=1, row_parts=min(parts, rows), capacity=capacity)
    return CpuConfig(scan, query_parts=min(parts, batch), row_parts=1, capacity=capacity)
