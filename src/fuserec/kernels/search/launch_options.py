"""The compile-time arguments of every launch: what the launcher passes and what is compiled ahead, from one place."""

from __future__ import annotations

from typing import Any

from fuserec.kernels.search.gpu_config import (
    COUNT_WARPS,
    COUNTED,
    KEEP,
    PLACE_WARPS,
    PLACED,
    POOL_COLUMNS,
    POOL_QUERIES,
    POOL_WARPS,
    REOPEN_WARPS,
    RESCORE_ROWS,
    RESCORE_WARPS,
    GpuConfig,
    rescore_columns,
)

Options = dict[str, Any]

# All that a thread can have. Left to itself, ptxas stops at a step of occupancy and spills a few words for it.
_MAX_REGISTERS = {"maxnreg": 255}


def sift_options(config: GpuConfig, stride: int, *, sample: bool) -> Options:
    """Return those of `sift_kernel` over rows of `stride` codes."""
    return {
        "SAMPLE": sample,
        "MMA": config.mma,
        "WIDE": stride > config.block_d,
        "BLOCK_Q": config.block_q,
        "BLOCK_N": config.block_n,
        "BLOCK_D": config.block_d,
        "BLOCK_BEST": config.block_best,
        "NUM_STAGES": config.num_stages,
        # A sample reads filters too, and has few tiles: more threads, so that each has registers enough.
        "num_warps": max(8, config.num_warps) if sample and config.mma else config.num_warps,
    } | _MAX_REGISTERS


def count_options() -> Options:
    """Return those of `floor_kernel` and `prune_kernel`."""
    return {"BLOCK_C": COUNTED, "num_warps": COUNT_WARPS} | _MAX_REGISTERS


def place_options() -> Options:
    """Return those of `place_kernel`."""
    return {"BLOCK_C": PLACED, "num_warps": PLACE_WARPS} | _MAX_REGISTERS


def rescore_options(dim: int) -> Options:
    """Return those of `rescore_kernel` over rows of `dim` columns."""
    return {"BLOCK_C": RESCORE_ROWS, "BLOCK_D": rescore_columns(dim), "num_warps": RESCORE_WARPS} | _MAX_REGISTERS


def prepare_options() -> Options:
    """Return those of `prepare_kernel`."""
    return {"BLOCK_Q": POOL_QUERIES, "BLOCK_POOL": POOL_COLUMNS, "num_warps": POOL_WARPS} | _MAX_REGISTERS


def block_best_options(config: GpuConfig) -> Options:
    """Return those of `block_best_kernel`."""
    return {
        "BLOCK_Q": config.block_q,
        "BLOCK_N": config.block_n,
        "BLOCK_D": config.block_d,
        "BLOCK_BEST": config.block_best,
        "num_warps": config.num_warps,
    } | _MAX_REGISTERS


def reopen_options(config: GpuConfig) -> Options:
    """Return those of `reopen_kernel`."""
    return {"BLOCK_BEST": config.block_best, "BLOCK_D": config.block_d, "num_warps": REOPEN_WARPS} | _MAX_REGISTERS


def keep_options(config: GpuConfig) -> Options:
    """Return those of `keep_best_kernel`."""
    return {
        "BLOCK_N": config.block_n,
        "BLOCK_D": config.block_d,
        "KEEP": KEEP,
        "num_warps": config.num_warps,
    } | _MAX_REGISTERS
