"""How a search is cut into pieces; pure functions of its sizes, so that a choice can be tested and explained."""

from __future__ import annotations

from dataclasses import dataclass

# Waking the other threads costs tens of microseconds; below this many multiply-adds one thread is done sooner.
SERIAL_WORK = 1 << 19
# A program of pass 2 has a few dozen rows to score: one warp.
REOPEN_WARPS = 1


@dataclass(frozen=True)
class CpuConfig:
    """The parts of a CPU search; every pair of a query part and a row part is one task.

    Attributes:
        query_parts: Number of parts the batch is cut into.
        row_parts: Number of parts the item table is cut into; their best k are merged.
    """

    query_parts: int
    row_parts: int

    def __post_init__(self) -> None:
        if self.query_parts < 1 or self.row_parts < 1:
            raise ValueError(f"got {self}, expected at least one part of each")


def choose_cpu_config(batch: int, rows: int, dim: int, threads: int) -> CpuConfig:
    """Choose the parts: queries where there are enough of them to keep the threads busy, else rows."""
    if batch * rows * dim < SERIAL_WORK or threads == 1:
        return CpuConfig(query_parts=1, row_parts=1)
    if batch >= threads:
        return CpuConfig(query_parts=threads, row_parts=1)
    return CpuConfig(query_parts=1, row_parts=min(threads, rows))


@dataclass(frozen=True)
class GpuConfig:
    """Tiles of the GPU kernels.

    Attributes:
        block_q: Queries a program of pass 1; 1 (multiply and sum) or 16 (the least `tl.dot` takes).
        block_n: Rows a program of pass 1.
        block_best: Rows that share one maximum, and that a program of pass 2 reopens.
        block_d: Columns loaded at a time.
        num_warps: Warps a program of pass 1.
    """

    block_q: int
    block_n: int
    block_best: int
    block_d: int
    num_warps: int

    def __post_init__(self) -> None:
        sizes = (self.block_q, self.block_n, self.block_best, self.block_d, self.num_warps)
        if any(size < 1 or size & (size - 1) for size in sizes):
            raise ValueError(f"got {self}, expected powers of two")
        if self.block_n % self.block_best:
            raise ValueError(f"got {self}, expected block_best to divide block_n")


def choose_gpu_config(batch: int, dim: int) -> GpuConfig:
    """Choose the tiles; the sizes are those that compile without spills, not yet tuned on a device."""
    width = max(16, 1 << (dim - 1).bit_length())
    if batch < 16:
        return GpuConfig(block_q=1, block_n=128, block_best=32, block_d=min(width, 64), num_warps=4)
    return GpuConfig(block_q=16, block_n=64, block_best=32, block_d=min(width, 64), num_warps=4)
