"""Launches the sift: int8 bounds of every row, float scores of the few that can matter, and the proof."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from fuserec.kernels.search import _kernel_rescore, _kernel_sift
from fuserec.kernels.search._cuda_inputs import DeviceQuery, DeviceTable
from fuserec.kernels.search.gpu_config import (
    RESCORE_ROWS,
    SCREEN_KEYS,
    GpuConfig,
    SiftPlan,
    query_levels,
    tiles_a_program,
)
from fuserec.kernels.search.keys import EMPTY
from fuserec.kernels.search.launch_options import rescore_options, screen_options, sift_options


@dataclass(frozen=True, eq=False)
class Sifted:
    """What pass 1 leaves: queries (B, stride) float32 as they are scored, and the keys of the rows let through.

    Attributes:
        queries: (B, stride) float32.
        magnitudes: (B,) float64 sums of |q| before normalising.
        floors: (B,) float32: a row that was not let through has a bound below.
        keys: (B, capacity) int64: bounds and rows, in no order; `EMPTY` beyond the last.
        counts: (B,) int32: rows that were to be let through; more than the capacity means that some were lost.
    """

    queries: torch.Tensor
    magnitudes: torch.Tensor
    floors: torch.Tensor
    keys: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True, eq=False)
class Proven:
    """What pass 2 finds; all tensors of B rows.

    Attributes:
        keys: (B, k) int64, descending.
        proven: The keys are those of the k best rows.
        certified: They were so at the first attempt.
        rescored: Rows scored in float.
    """

    keys: torch.Tensor
    proven: torch.Tensor
    certified: torch.Tensor
    rescored: torch.Tensor


def sift(table: DeviceTable, query: DeviceQuery, config: GpuConfig, plan: SiftPlan) -> Sifted:
    """Run pass 1: sample for the floors, let through what may reach them, and drop what a query excludes."""
    assert table.codes is not None
    device, batch = table.items.device, query.batch
    tiles = triton.cdiv(table.rows, config.block_n)
    keys = torch.full((batch, plan.capacity), EMPTY, dtype=torch.int64, device=device)
    counts = torch.zeros(batch, dtype=torch.int32, device=device)
    queries = torch.empty((batch, table.codes.values.shape[1]), dtype=torch.float32, device=device)
    magnitudes = torch.empty(batch, dtype=torch.float64, device=device)
    floors = torch.full((batch,), -torch.inf, device=device)
    if plan.tile_stride:
        sampled = triton.cdiv(tiles, plan.tile_stride)
        best = torch.empty((batch, sampled * config.block_n // config.block_best), device=device)
        pass_1 = Sifted(queries, magnitudes, floors, keys, counts)
        _launch_sift(table, query, config, pass_1, best, sampled, plan.tile_stride, sample=True)
        floors = best.topk(plan.rank, dim=1).values[:, -1].contiguous()
    sifted = Sifted(queries, magnitudes, floors, keys, counts)
    _launch_sift(table, query, config, sifted, floors, tiles, 1, sample=False)
    if query.filter_flags["EXCLUDE"]:
        programs = batch * triton.cdiv(plan.capacity, SCREEN_KEYS)
        _kernel_rescore.screen_kernel[(programs,)](
            keys, *query.filters[:2], plan.capacity, query.n_steps, **screen_options()
        )
    return sifted


def _launch_sift(
    table: DeviceTable,
    query: DeviceQuery,
    config: GpuConfig,
    out: Sifted,
    best: torch.Tensor,
    tiles: int,
    tile_stride: int,
    *,
    sample: bool,
) -> None:
    codes = table.codes
    assert codes is not None
    query_tiles = triton.cdiv(query.batch, config.block_q)
    each = tiles_a_program(tiles, query_tiles)
    _kernel_sift.sift_kernel[(triton.cdiv(tiles, each) * query_tiles,)](
        out.queries, out.magnitudes, best, out.keys, out.counts, out.floors,
        codes.values, codes.scales, codes.reaches, *query.pooled, *query.filters,
        query.batch, table.rows, table.dim, query.n_steps, tiles, each, tile_stride, query_levels(table.dim),
        out.keys.shape[1], codes.values.stride(0), query.stride_allow,
        **query.pool_flags, **query.filter_flags, **sift_options(config, codes.values.stride(0), sample=sample),
    )  # fmt: skip


def prove(table: DeviceTable, sifted: Sifted, k: int, first: int) -> Proven:
    """Run pass 2: score the rows of the best bounds, and twice as many until no other can be among the k best.

    A row that was not let through has a bound below its floor; one let through and not scored, a bound no better than
    the next in line. So the k best are known once the k-th score is above both. Where keys were lost for want of
    room, or the floor lay too high, no number of them proves it.
    """
    capacity = sifted.keys.shape[1]
    has_room = sifted.counts <= capacity
    opened, certified = min(first, capacity), None
    while True:
        picked = sifted.keys.topk(min(opened + 1, capacity), dim=1).values
        best = _rescore(table, sifted.queries, picked[:, :opened].contiguous()).topk(min(k, opened), dim=1).values
        best = torch.nn.functional.pad(best, (0, k - best.shape[1]), value=EMPTY)
        kth = _score(best[:, -1])
        unopened = picked[:, opened] if opened < capacity else torch.full_like(best[:, -1], EMPTY)
        exhausted = unopened == EMPTY
        proven = has_room & (kth >= sifted.floors) & (exhausted | (kth > _score(unopened)))
        certified = proven if certified is None else certified
        if not bool((has_room & ~proven & ~exhausted).any()):
            rescored = (picked[:, :opened] != EMPTY).sum(1)
            return Proven(best, proven, certified, rescored)
        opened = min(2 * opened, capacity)


def _rescore(table: DeviceTable, queries: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """Return the keys (B, P) of the float scores of the rows that `picked` (B, P) names."""
    batch, n_picked = picked.shape
    scored = torch.empty_like(picked)
    _kernel_rescore.rescore_kernel[(batch * triton.cdiv(n_picked, RESCORE_ROWS),)](
        scored, picked, table.items, queries, n_picked, table.items.stride(0), queries.stride(0),
        **rescore_options(table.dim),
    )  # fmt: skip
    return scored


def _score(keys: torch.Tensor) -> torch.Tensor:
    """Return the float32 score that each key holds; -inf for `EMPTY`."""
    bits = (keys >> 32).to(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return torch.where(keys == EMPTY, -torch.inf, bits.view(torch.float32))
