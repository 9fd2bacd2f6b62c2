"""CPU twin of the search: the calls that cut the work into parts and launch the compiled functions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numba
import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray, counted, frozen, read_only
from fuserec.kernels.filters import RowFilter, as_row_filter
from fuserec.kernels.packed import PackedCodes, pack
from fuserec.kernels.quantize import quantize_rows
from fuserec.kernels.query import Pool, as_pool
from fuserec.kernels.search import _numba_rows, keys
from fuserec.kernels.search._numba_candidates import allocate_candidates
from fuserec.kernels.search._numba_codes import Heaps, Table
from fuserec.kernels.search._numba_jit import compiled_once
from fuserec.kernels.search._numba_queries import allocate_asked
from fuserec.kernels.search._numba_rescore import Answers
from fuserec.kernels.search._numba_run import (
    ESTIMATE,
    EVERY,
    REFINE,
    RESCORE,
    SAMPLE,
    SIFT,
    Plan,
    Prepared,
    prepare,
    work,
)
from fuserec.kernels.search._numba_score import Bags, Out
from fuserec.kernels.search._numba_tile import TILE_GROUPS, WIDTHS
from fuserec.kernels.search._threads import run
from fuserec.kernels.search.cpu_config import RESCORED_A_TASK, CpuConfig, choose_cpu_config
from fuserec.kernels.search.found import Found


def _heaps(parts: int, k: int) -> Heaps:
    """Return room for the k best keys of one query in each part."""
    sizes = np.zeros((2, parts, 1), np.int64)
    return Heaps(np.full((parts, 1, k), keys.EMPTY, np.int64), sizes[0], sizes[1])


NO_HEAPS = _heaps(1, 0)


def search(
    items: FloatArray,
    codes: PackedCodes | None,
    pool: Pool,
    out: RowFilter,
    k: int,
    *,
    normalize: bool,
    resident: dict[str, Any],
    config: CpuConfig | None = None,
) -> Found:
    """Search on the CPU with as many threads as `numba.get_num_threads()`; arguments as in `op.search`.

    `config` is chosen by the sizes unless given.
    """
    if config is None:
        (rows, dim), threads = items.shape, numba.get_num_threads()
        config = choose_cpu_config(pool.batch, rows, dim, k, threads, has_codes=codes is not None, widths=WIDTHS)
    bags = Bags(read_only(pool.table), read_only(pool.ids), read_only(pool.offsets), read_only(pool.weights))
    filters = Out(read_only(out.offsets), read_only(out.rows), read_only(out.allow))
    if config.scan == "rows" or codes is None:
        return _scan_rows(read_only(items), bags, filters, k, config, normalize=normalize)
    if "numba" not in resident:
        resident["numba"] = as_table(items, codes)
    table: Table = resident["numba"]
    plan = Plan(k, normalize, config.tile, config.stride, config.lanes, config.capacity)
    answers = allocate_answers(pool.batch, k)
    if config.row_parts == 1:
        _share_queries(table, bags, filters, plan, config, answers)
    else:
        _share_rows(table, bags, filters, plan, config, answers)
    if not answers.certified.all():
        for b in np.flatnonzero(~answers.certified):
            _refine(table, bags, filters, int(b), plan, answers)
    return Found(*answers)


def warm_up(*, has_codes: bool) -> None:
    """Search four rows in every way there is, so that no search waits until something is compiled, or loaded.

    Of several processes that do so at once on a machine where nothing is compiled, one compiles.
    """
    items = np.eye(4, dtype=np.float32)
    pool, out = as_pool(items[:1], 4), as_row_filter(None, None, ids=counted(4), batch=1)
    way = choose_cpu_config(1, 4, 4, 1, 1, has_codes=True, widths=WIDTHS)
    ways = [way, dataclasses.replace(way, row_parts=2)] if has_codes else []
    codes = pack(quantize_rows(items), items)
    with compiled_once(_numba_rows.scan_part):  # the last of what is compiled here
        for each in [*ways, dataclasses.replace(way, scan="rows")]:
            search(items, codes, pool, out, 1, normalize=False, resident={}, config=each)


def allocate_answers(batch: int, k: int) -> Answers:
    """Return room for the answers of a batch."""
    return Answers(
        rows=np.empty((batch, k), np.int64),
        scores=np.empty((batch, k), np.float32),
        magnitudes=np.empty(batch, np.float64),
        certified=np.empty(batch, np.bool_),
        rescored=np.empty(batch, np.int64),
    )


def as_table(items: FloatArray, codes: PackedCodes) -> Table:
    """Return rows and codes as the compiled functions take them."""
    return Table(*(read_only(array) for array in (items, codes.codes, codes.scale, codes.residual, codes.reach)))


def _share_queries(table: Table, bags: Bags, out: Out, plan: Plan, config: CpuConfig, answers: Answers) -> None:
    edges = edges_of(len(answers.rows), config.query_parts)
    groups = edges_of(len(table.codes), 1)

    def search_part(part: int) -> None:
        span = (int(edges[part]), int(edges[part + 1]), groups)
        work(EVERY, 0, 1, table, bags, out, *span, plan, _nothing_prepared(), NO_HEAPS, answers)

    run(search_part, config.query_parts, numba.get_num_threads())


def _share_rows(table: Table, bags: Bags, out: Out, plan: Plan, config: CpuConfig, answers: Answers) -> None:
    batch, parts, threads = len(answers.rows), config.row_parts, numba.get_num_threads()
    span = (0, batch, edges_of(len(table.codes), parts, TILE_GROUPS))
    prepared = prepare(bags, 0, batch, parts, plan, table, answers)
    # A few queries are rescored sooner than another thread is awake.
    some = max(min(batch * plan.k // RESCORED_A_TASK, threads), 1)
    for step, tasks in ((SAMPLE, parts), (ESTIMATE, some), (SIFT, parts), (RESCORE, some)):

        def do(task: int, step: int = step, tasks: int = tasks) -> None:
            work(step, task, tasks, table, bags, out, *span, plan, prepared, NO_HEAPS, answers)

        run(do, tasks, threads)


def _refine(table: Table, bags: Bags, out: Out, b: int, plan: Plan, answers: Answers) -> None:
    """Search query `b` again, scoring every row that the codes let through, and write its answer."""
    threads = numba.get_num_threads()
    span, heaps = (b, b + 1, edges_of(len(table.codes), threads, TILE_GROUPS)), _heaps(threads, plan.k)
    alone = plan._replace(tile=1, capacity=1)
    prepared = prepare(bags, b, b + 1, threads, alone, table, answers)

    def refine_part(part: int) -> None:
        work(REFINE, part, threads, table, bags, out, *span, alone, prepared, heaps, answers)

    run(refine_part, threads, threads)
    best, scores = keys.unpack(_merged(heaps.keys, plan.k))
    answers.rows[b], answers.scores[b], answers.rescored[b] = best[0], scores[0], heaps.scored.sum()


@functools.cache
def _nothing_prepared() -> Prepared:
    """Return what `work` is given for a step before which there is nothing to prepare."""
    return Prepared(allocate_asked(0, 1, 1, 1), allocate_candidates(0, 0, 0, 0), np.empty((0, 0, 0), np.float32))


def _scan_rows(items: FloatArray, bags: Bags, out: Out, k: int, config: CpuConfig, *, normalize: bool) -> Found:
    batch = len(bags.offsets) - 1
    parts = _numba_rows.Parts(edges_of(batch, config.query_parts), edges_of(len(items), config.row_parts))
    heaps = _numba_rows.Heaps(
        keys=np.full((config.row_parts, batch, k), keys.EMPTY, np.int64),
        magnitudes=np.empty((config.row_parts, batch), np.float64),
    )

    def scan_part(task: int) -> None:
        _numba_rows.scan_part(task, items, bags, normalize, out, parts, heaps)

    run(scan_part, config.query_parts * config.row_parts, numba.get_num_threads())
    return Found(*keys.unpack(_merged(heaps.keys, k)), heaps.magnitudes[0])


@functools.lru_cache(maxsize=1024)
def edges_of(total: int, parts: int, multiple: int = 1) -> IntArray:
    """Cut `total`, a multiple of `multiple`, into parts that are such multiples too; read-only."""
    edges: IntArray = frozen(np.arange(parts + 1) * (total // multiple) // parts * multiple)
    return edges


def _merged(found: IntArray, k: int) -> IntArray:
    """Return the k best (B, k) of keys (P, B, k), descending."""
    best: IntArray = np.sort(np.concatenate(found, axis=1), axis=1)[:, : -k - 1 : -1]
    return best
