"""Launches the GPU twin: on a CUDA device, or on the CPU under the Triton interpreter.

Imported by the first search that asks for it, as it brings torch and triton.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from fuserec.kernels._arrays import Array, FloatArray
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.query import Pool
from fuserec.kernels.search import _kernel, keys
from fuserec.kernels.search.config import REOPEN_WARPS, GpuConfig, choose_gpu_config
from fuserec.kernels.search.found import Found

Resident = dict[str, Any]


def search(
    items: FloatArray,
    pool: Pool,
    out: RowFilter,
    k: int,
    *,
    normalize: bool,
    interpret: bool,
    resident: Resident,
) -> Found:
    """Search with the Triton kernels.

    Args:
        items: As in `reference.search`, like the next four.
        pool: The queries.
        out: Rows that may not be returned.
        k: At least 1, at most N.
        normalize: Divide each query by its norm.
        interpret: Run on the CPU; needs a process in which triton was imported under TRITON_INTERPRET=1.
        resident: Device copies of `items`, by device; filled by the first search there and used by later ones.

    Raises:
        ValueError: There is no CUDA device, or the kernels are (or are not) interpreted against what was asked.
    """
    device = _device(interpret)
    if device not in resident:
        resident[device] = _tensor(items, device)
    if not interpret:
        pool = _compact(pool)
    inputs = (
        resident[device],
        *(_tensor(array, device) for array in (pool.table, pool.ids, pool.offsets, pool.weights)),
        *(_tensor(array, device) for array in (out.offsets, out.rows, out.allow.view(np.uint8))),
    )
    longest = int(np.diff(out.offsets).max())
    stride_allow = len(items) if len(out.allow) > 1 else 0
    sizes = (pool.batch, *items.shape, longest.bit_length(), stride_allow)
    config = choose_gpu_config(pool.batch, items.shape[1])
    flags = {
        "KIND": pool.kind,
        "WEIGHTED": pool.weights.size > 0,
        "NORMALIZE": normalize,
        "EXCLUDE": longest > 0,
        "ALLOW": len(out.allow) > 0,
        "BLOCK_BEST": config.block_best,
        "BLOCK_D": config.block_d,
    }
    # The interpreter computes with numpy; a query that overflows is refused by the caller, by its magnitude.
    with np.errstate(over="ignore", invalid="ignore"):
        top, magnitudes = _launch(inputs, sizes, flags, config, k)
    return Found(*keys.unpack(top.cpu().numpy()), magnitudes.cpu().numpy())


def _launch(
    inputs: tuple[torch.Tensor, ...], sizes: tuple[int, ...], flags: dict[str, Any], config: GpuConfig, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run both passes; return the k best keys (B, k) int64 in descending order, and magnitudes (B,) float64."""
    batch, rows, *_ = sizes
    device = inputs[0].device
    n_blocks = triton.cdiv(rows, config.block_best)
    best = torch.empty((batch, n_blocks), dtype=torch.int64, device=device)
    magnitudes = torch.empty(batch, dtype=torch.float64, device=device)
    tiles = triton.cdiv(rows, config.block_n) * triton.cdiv(batch, config.block_q)
    _kernel.block_best_kernel[(tiles,)](
        best, magnitudes, *inputs, *sizes,
        BLOCK_Q=config.block_q, BLOCK_N=config.block_n, num_warps=config.num_warps, **flags,
    )  # fmt: skip
    picked = best.topk(min(k, n_blocks), dim=1, sorted=False).indices
    opened = torch.empty((*picked.shape, config.block_best), dtype=torch.int64, device=device)
    _kernel.reopen_kernel[(picked.numel(),)](
        opened, picked, *inputs, *sizes, picked.shape[1], num_warps=REOPEN_WARPS, **flags
    )  # fmt: skip
    return opened.flatten(1).topk(k, dim=1).values, magnitudes


def _compact(pool: Pool) -> Pool:
    """Keep the rows of a host table that the ids name, so that no more than those travel to the device."""
    if isinstance(pool.table, torch.Tensor) or len(pool.ids) >= len(pool.table):
        return pool
    return replace(pool, table=pool.table[pool.ids], ids=np.arange(len(pool.ids)))


def _device(interpret: bool) -> str:
    interpreted = isinstance(_kernel.block_best_kernel, InterpretedFunction)
    if interpret and not interpreted:
        raise ValueError(
            "backend 'interpret': the kernels are compiled; set TRITON_INTERPRET=1 before triton is imported"
        )
    if interpret:
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            "backend 'cuda': got no CUDA device that torch can see, expected one; backend 'cpu' needs none"
        )
    if interpreted:
        raise ValueError("backend 'cuda': got interpreted kernels, expected TRITON_INTERPRET to be unset")
    return f"cuda:{torch.cuda.current_device()}"


def _tensor(array: Array | torch.Tensor, device: str) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.to(device)
    # Copied first because torch does not take read-only arrays, and triton takes no empty ones.
    return torch.from_numpy(np.array(array) if array.size else np.zeros(1, array.dtype)).to(device)
