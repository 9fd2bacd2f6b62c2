"""Launches the float scan: every row in float32 or float16, one pass for small k, else block maxima and a second."""

from __future__ import annotations

import torch
import triton

from fuserec.kernels.search import _kernel
from fuserec.kernels.search._cuda_inputs import DeviceQuery, DeviceTable
from fuserec.kernels.search.gpu_config import KEEP, POOL_QUERIES, GpuConfig, tiles_a_program
from fuserec.kernels.search.launch_options import (
    block_best_options,
    keep_options,
    pool_options,
    reopen_options,
)


def scan(table: DeviceTable, query: DeviceQuery, k: int, config: GpuConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best keys (B, k) int64 in descending order, and magnitudes (B,) float64; k is at most N."""
    items = table.items
    queries = torch.empty((query.batch, items.shape[1]), dtype=torch.float32, device=items.device)
    magnitudes = torch.empty(query.batch, dtype=torch.float64, device=items.device)
    _kernel.pool_kernel[(triton.cdiv(query.batch, POOL_QUERIES),)](
        queries, magnitudes, *query.pooled, query.batch, table.dim, queries.stride(0),
        **query.pool_flags, **pool_options(),
    )  # fmt: skip
    inputs = (items, queries, *query.filters)
    strides = (items.stride(0), queries.stride(0), query.stride_allow)
    sizes = (query.batch, table.rows, query.n_steps, *strides)
    best = (_keep if config.method == "keep" else _reopen)(inputs, sizes, query, k, config)
    return best, magnitudes


def _reopen(
    inputs: tuple[torch.Tensor, ...], sizes: tuple[int, ...], query: DeviceQuery, k: int, config: GpuConfig
) -> torch.Tensor:
    batch, rows, *_ = sizes
    n_blocks = triton.cdiv(rows, config.block_best)
    best = torch.empty((batch, n_blocks), dtype=torch.int64, device=inputs[0].device)
    tiles = triton.cdiv(rows, config.block_n) * triton.cdiv(batch, config.block_q)
    _kernel.block_best_kernel[(tiles,)](best, *inputs, *sizes, **query.filter_flags, **block_best_options(config))
    picked = best.topk(min(k, n_blocks), dim=1, sorted=False).indices
    opened = torch.empty((*picked.shape, config.block_best), dtype=torch.int64, device=best.device)
    _kernel.reopen_kernel[(picked.numel(),)](
        opened, picked, *inputs, *sizes, picked.shape[1], **query.filter_flags, **reopen_options(config)
    )
    return opened.flatten(1).topk(k, dim=1).values


def _keep(
    inputs: tuple[torch.Tensor, ...], sizes: tuple[int, ...], query: DeviceQuery, k: int, config: GpuConfig
) -> torch.Tensor:
    batch, rows, *_ = sizes
    tiles = triton.cdiv(rows, config.block_n)
    each = tiles_a_program(tiles, batch)
    runs = triton.cdiv(tiles, each)
    kept = torch.empty((batch, runs * KEEP), dtype=torch.int64, device=inputs[0].device)
    _kernel.keep_best_kernel[(batch * runs,)](kept, *inputs, *sizes, each, **query.filter_flags, **keep_options(config))
    return kept.topk(k, dim=1).values
