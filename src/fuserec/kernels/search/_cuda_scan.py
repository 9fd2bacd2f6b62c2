"""Launches the float scan: every row in its own dtype, one pass for small k, else block maxima and a second pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from fuserec.kernels.search import _kernel
from fuserec.kernels.search._cuda_table import DeviceTable
from fuserec.kernels.search.gpu_config import BLOCK_BEST, KEEP, GpuConfig, tiles_a_program
from fuserec.kernels.search.launch_options import block_best_options, keep_options, reopen_options


@dataclass(frozen=True, eq=False)
class Filters:
    """Which rows a query may have: arguments of the kernels, in their order.

    Attributes:
        lists: Offsets and rows of the lists that came along, of the resident ones, and whose list each query has.
        allow: Masks.
        list_flags: Compile-time arguments that go with the lists.
        steps: Rounds of a binary search in the longest list of each kind.
        allowed: That of the masks.
        stride_allow: 0 where one mask serves the batch.
    """

    lists: tuple[torch.Tensor, ...]
    allow: torch.Tensor
    list_flags: dict[str, bool]
    steps: tuple[int, int]
    allowed: dict[str, bool]
    stride_allow: int


def scan(
    table: DeviceTable, queries: torch.Tensor, batch: int, filters: Filters, k: int, config: GpuConfig
) -> torch.Tensor:
    """Return the k best keys (B, k) int64 in descending order, `EMPTY` in the tail; k is at most N.

    Args:
        table: What is searched.
        queries: (B, stride) float32, as they are scored.
        batch: B.
        filters: Rows that may not come back.
        k: At least 1.
        config: Of method "keep" or "blocks".
    """
    inputs = (table.items, queries, *filters.lists, filters.allow)
    strides = (table.items.stride(0), queries.stride(0), filters.stride_allow)
    sizes = (batch, table.rows, *filters.steps, *strides)
    return (_keep if config.method == "keep" else _reopen)(
        inputs, sizes, filters.list_flags | filters.allowed, k, config
    )


def scan_bytes(table: DeviceTable, batch: int, k: int) -> int:
    """Return what `scan` takes on the device at most: a key a block of rows, and those of the blocks read again."""
    blocks = -(-table.rows // BLOCK_BEST)
    return batch * 8 * (blocks + 2 * min(k, blocks) * (BLOCK_BEST + 1))


def _reopen(
    inputs: tuple[torch.Tensor, ...], sizes: tuple[int, ...], flags: dict[str, bool], k: int, config: GpuConfig
) -> torch.Tensor:
    batch, rows, *_ = sizes
    n_blocks = triton.cdiv(rows, config.block_best)
    best = torch.empty((batch, n_blocks), dtype=torch.int64, device=inputs[1].device)
    tiles = triton.cdiv(rows, config.block_n) * triton.cdiv(batch, config.block_q)
    _kernel.block_best_kernel[(tiles,)](best, *inputs, *sizes, **flags, **block_best_options(config))
    picked = best.topk(min(k, n_blocks), dim=1, sorted=False).indices
    opened = torch.empty((*picked.shape, config.block_best), dtype=torch.int64, device=best.device)
    _kernel.reopen_kernel[(picked.numel(),)](
        opened, picked, *inputs, *sizes, picked.shape[1], **flags, **reopen_options(config)
    )
    return opened.flatten(1).topk(k, dim=1).values


def _keep(
    inputs: tuple[torch.Tensor, ...], sizes: tuple[int, ...], flags: dict[str, bool], k: int, config: GpuConfig
) -> torch.Tensor:
    batch, rows, *_ = sizes
    tiles = triton.cdiv(rows, config.block_n)
    each = tiles_a_program(tiles, batch)
    runs = triton.cdiv(tiles, each)
    kept = torch.empty((batch, runs * KEEP), dtype=torch.int64, device=inputs[1].device)
    _kernel.keep_best_kernel[(batch * runs,)](kept, *inputs, *sizes, each, **flags, **keep_options(config))
    return kept.topk(k, dim=1).values
