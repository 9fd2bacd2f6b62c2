"""CPU twin of the search: the calls that cut the work into parts and launch the compiled functions."""

from __future__ import annotations

import numba
import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray, read_only
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.packed import PackedCodes
from fuserec.kernels.query import Pool
from fuserec.kernels.search import _numba_rows, keys
from fuserec.kernels.search._numba_candidates import allocate_candidates
from fuserec.kernels.search._numba_codes import Heaps, Table
from fuserec.kernels.search._numba_queries import WIDEST_TILE, Asked, allocate_asked
from fuserec.kernels.search._numba_run import Edges, Sifted, ask_all, refine, rescore_part, sift
from fuserec.kernels.search._numba_score import Bags, Out
from fuserec.kernels.search._numba_tile import TILE_GROUPS
from fuserec.kernels.search._threads import run
from fuserec.kernels.search.cpu_config import QUERIES_AT_ONCE, RESCORED_A_TASK, CpuConfig, choose_cpu_config
from fuserec.kernels.search.found import Found


def search(
    items: FloatArray, codes: PackedCodes | None, pool: Pool, out: RowFilter, k: int, *, normalize: bool
) -> Found:
    """Search on the CPU with as many threads as `numba.get_num_threads()`; arguments as in `op.search`."""
    rows, dim = items.shape
    threads = numba.get_num_threads()
    config = choose_cpu_config(pool.batch, rows, dim, k, threads, has_codes=codes is not None)
    bags = Bags(read_only(pool.table), read_only(pool.ids), read_only(pool.offsets), read_only(pool.weights))
    filters = Out(read_only(out.offsets), read_only(out.rows), read_only(out.allow))
    if config.scan == "rows" or codes is None:
        return _scan_rows(read_only(items), bags, filters, k, config, normalize=normalize)
    arrays = (items, codes.codes, codes.scale, codes.residual, codes.reach)
    table = Table(*(read_only(array) for array in arrays))
    found = [
        _scan_codes(table, bags, filters, start, min(start + QUERIES_AT_ONCE, pool.batch), k, config, normalize)
        for start in range(0, pool.batch, QUERIES_AT_ONCE)
    ]
    if len(found) == 1:
        return found[0]
    return Found(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))


def _scan_rows(items: FloatArray, bags: Bags, out: Out, k: int, config: CpuConfig, *, normalize: bool) -> Found:
    batch = len(bags.offsets) - 1
    parts = _numba_rows.Parts(
        query_edges=np.arange(config.query_parts + 1) * batch // config.query_parts,
        row_edges=np.arange(config.row_parts + 1) * len(items) // config.row_parts,
    )
    heaps = _numba_rows.Heaps(
        keys=np.full((config.row_parts, batch, k), keys.EMPTY, np.int64),
        magnitudes=np.empty((config.row_parts, batch), np.float64),
    )

    def scan_part(task: int) -> None:
        _numba_rows.scan_part(task, items, bags, normalize, out, parts, heaps)

    run(scan_part, config.query_parts * config.row_parts, numba.get_num_threads())
    return Found(*keys.unpack(_merged(heaps.keys, k)), heaps.magnitudes[0])


def _merged(found: IntArray, k: int) -> IntArray:
    """Return the k best (B, k) of keys (P, B, k), descending."""
    best: IntArray = np.sort(np.concatenate(found, axis=1), axis=1)[:, : -k - 1 : -1]
    return best


def _scan_codes(
    table: Table, bags: Bags, out: Out, start: int, stop: int, k: int, config: CpuConfig, normalize: bool
) -> Found:
    """Search queries `start:stop` of the batch; first `sift`, then `refine` for those that it could not prove."""
    batch, threads = stop - start, numba.get_num_threads()
    asked = allocate_asked(batch, table.items.shape[1], table.codes.shape[1])
    kept = allocate_candidates(config.row_parts, batch, k, config.capacity)
    best = np.full((batch, k), keys.EMPTY, np.int64)
    certified, rescored = np.empty(batch, np.bool_), np.zeros(batch, np.int64)
    edges = Edges(
        queries=np.minimum(_edges(len(asked.biases), config.query_parts, WIDEST_TILE), batch),
        groups=_edges(len(table.codes), config.row_parts, TILE_GROUPS),
    )
    found = Sifted(best, certified, rescored)
    ask_all(bags, normalize, start, asked)

    def sift_part(task: int) -> None:
        sift(task, table, out, start, edges, asked, kept, k)

    # A few queries are rescored sooner than another thread is awake.
    tasks = max(min(batch * k // RESCORED_A_TASK, threads), 1)

    def rescore_some(task: int) -> None:
        rescore_part(task, tasks, table, asked, kept, found)

    run(sift_part, config.query_parts * config.row_parts, threads)
    run(rescore_some, tasks, threads)
    for q in np.flatnonzero(~certified):
        best[q], rescored[q] = _refined(table, asked, out, start, int(q), k)
    return Found(*keys.unpack(best), asked.magnitudes, certified, rescored)


def _edges(total: int, parts: int, tile: int) -> IntArray:
    """Cut `total`, a multiple of `tile`, into parts of whole tiles."""
    return np.arange(parts + 1) * (total // tile) // parts * tile


def _refined(table: Table, asked: Asked, out: Out, start: int, q: int, k: int) -> tuple[IntArray, int]:
    """Search one query again, scoring every row that the codes let through; return keys (k,) and their number."""
    edges = _edges(len(table.codes), numba.get_num_threads(), TILE_GROUPS)
    parts = len(edges) - 1
    heaps = Heaps(
        keys=np.full((parts, 1, k), keys.EMPTY, np.int64),
        sizes=np.zeros((parts, 1), np.int64),
        scored=np.zeros((parts, 1), np.int64),
    )
    padded = allocate_asked(1, asked.queries.shape[1], table.codes.shape[1])
    for name, array in padded._asdict().items():
        array[:1] = getattr(asked, name)[q : q + 1]

    def refine_part(part: int) -> None:
        refine(part, table, out, start + q, edges, padded, heaps)

    run(refine_part, parts, parts)
    return _merged(heaps.keys, k)[0], int(heaps.scored.sum())
