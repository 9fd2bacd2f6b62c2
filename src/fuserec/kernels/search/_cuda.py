"""Launches the GPU twin: on a CUDA device, or on the CPU under the Triton interpreter.

Imported by the first search that asks for it, as it brings torch and triton.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import InterpretedFunction

from fuserec.kernels._arrays import FloatArray, IntArray, end_to_end
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.packed import PackedCodes
from fuserec.kernels.query import Pool
from fuserec.kernels.search import _cuda_sift, _kernel, keys
from fuserec.kernels.search._cuda_inputs import DeviceTable, to_device_query, to_device_table
from fuserec.kernels.search._cuda_scan import scan
from fuserec.kernels.search.found import Found
from fuserec.kernels.search.gpu_config import DEFAULT_ARCH, Shape, choose_config, choose_plan

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
    codes: PackedCodes | None = None,
) -> Found:
    """Search with the Triton kernels.

    Args:
        items: As in `reference.search`, like the next four.
        pool: The queries.
        out: Rows that may not be returned.
        k: At least 1, at most N.
        normalize: Divide each query by its norm.
        interpret: Run on the CPU; needs a process in which triton was imported under TRITON_INTERPRET=1.
        resident: The table on each device; filled by the first search there and used by later ones.
        codes: Codes of `items`, or None for a scan of the float rows.

    Raises:
        ValueError: There is no CUDA device, or the kernels are (or are not) interpreted against what was asked.
    """
    device = _device(interpret)
    if device not in resident:
        resident[device] = to_device_table(items, None if codes is None else codes.unpack(), device)
    if not interpret:
        pool = _compact(pool)
    # The interpreter computes with numpy; a query that overflows is refused by the caller, by its magnitude.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _search(resident[device], pool, out, k, normalize=normalize, device=device)


def _search(table: DeviceTable, pool: Pool, out: RowFilter, k: int, *, normalize: bool, device: str) -> Found:
    query = to_device_query(pool, out, normalize=normalize, rows=table.rows, device=device)
    shape = Shape(pool.batch, table.rows, table.dim, k, int(np.diff(out.offsets).max()))
    config = choose_config(shape, table.dtype, _arch(device))
    if config.method != "sift":
        best, magnitudes = scan(table, query, k, config)
        return Found(*keys.unpack(best.cpu().numpy()), magnitudes.cpu().numpy())
    plan = choose_plan(shape, config)
    sifted = _cuda_sift.sift(table, query, config, plan)
    answer = _cuda_sift.prove(table, sifted, k, plan.first)
    best, rescored = answer.keys, answer.rescored
    left = np.flatnonzero(~answer.proven.cpu().numpy())
    if left.size:
        # No bound tells these rows apart, or the sample misled: the float scan needs neither.
        best[left], _ = _scan_some(table, sifted.queries[left, : table.dim].contiguous(), _of(out, left), k, device)
        rescored[left] = table.rows
    return _found(best, sifted.magnitudes, answer.certified, rescored)


def _scan_some(
    table: DeviceTable, queries: torch.Tensor, out: RowFilter, k: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan in float for `queries` (Q, dim), normalised already where they are to be."""
    batch = len(queries)
    dense = Pool("dense", queries, np.arange(batch), np.arange(batch + 1), np.empty(0, np.float32))
    query = to_device_query(dense, out, normalize=False, rows=table.rows, device=device)
    bare = replace(table, codes=None)
    config = choose_config(Shape(batch, table.rows, table.dim, k), bare.dtype, _arch(device))
    return scan(bare, query, k, config)


def _of(out: RowFilter, queries: IntArray) -> RowFilter:
    """Return the filter of some of the queries."""
    lists = [out.rows[out.offsets[b] : out.offsets[b + 1]] for b in queries]
    rows, offsets = end_to_end(lists)
    return RowFilter(offsets, rows, out.allow[queries] if len(out.allow) > 1 else out.allow)


def _found(best: torch.Tensor, magnitudes: torch.Tensor, certified: torch.Tensor, rescored: torch.Tensor) -> Found:
    found = (tensor.cpu().numpy() for tensor in (magnitudes, certified, rescored))
    return Found(*keys.unpack(best.cpu().numpy()), *found)


def _compact(pool: Pool) -> Pool:
    """Keep the rows of a host table that the ids name, so that no more than those travel to the device."""
    if isinstance(pool.table, torch.Tensor) or len(pool.ids) >= len(pool.table):
        return pool
    return replace(pool, table=pool.table[pool.ids], ids=np.arange(len(pool.ids)))


def _arch(device: str) -> int:
    """Return the compute capability of `device`, 80 for 8.0."""
    if device == "cpu":
        return DEFAULT_ARCH
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


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
