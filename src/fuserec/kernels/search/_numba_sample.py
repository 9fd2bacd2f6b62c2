"""The threshold from a first look at the rows, so that a scan has few candidates from its start.

Of every `stride` tiles of rows one is scored by its codes, and only maxima are kept: a fixed number for a query and a
part of the rows, each over several rows. Nothing branches on a score. The r-th best maximum is at most the r-th best
score of the sample, so that the threshold is rather too low, which costs candidates, than too high.

A sample gives an estimate, of scores halfway between their bounds, as those are the best guess; what it is worth is
found out by `rescore`. With a stride of 1 it is no sample: the maxima are of lower bounds, and the threshold is
certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from fuserec.kernels._arrays import FloatArray
from fuserec.kernels.packed import GROUP, QUAD
from fuserec.kernels.search._numba_candidates import Candidates, lowered
from fuserec.kernels.search._numba_codes import Span, Table
from fuserec.kernels.search._numba_emit import (
    F32,
    I8,
    I32,
    I64,
    LINE_BYTES,
    Emitter,
    address_of,
    intrinsic,
    on_cache_lines,
    prefetch,
)
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked
from fuserec.kernels.search._numba_score import Out
from fuserec.kernels.search._numba_select import kth_largest
from fuserec.kernels.search._numba_tile import TILE_GROUPS, TILE_ROWS, close_tiles, open_tiles, tile_sums


def _raise_maxima(filtered: bool) -> Any:
    """Return the intrinsic that raises 16 maxima by what 32 rows score, less slopes[0] * residual + slopes[1] * reach.

    If `filtered`, rows whose byte of `allow` is 0 are left out.
    """
    rows = ir.VectorType(F32, GROUP)

    @intrinsic
    def raise_maxima(
        _: Any, sums: Any, scale: Any, residual: Any, reach: Any, slopes: Any, allow: Any, maxima: Any
    ) -> Any:
        def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
            sums, scale, residual, reach, slopes, allow, maxima = arguments
            out = Emitter(builder)
            per_residual, per_reach = (out.splat(out.load(slopes, out.constant(4 * at), F32), GROUP) for at in range(2))
            best = out.load(maxima, out.constant(0), rows)
            for g in range(TILE_GROUPS):
                offset = out.constant(4 * GROUP * g)
                total = builder.sitofp(out.load(sums, offset, ir.VectorType(I32, GROUP)), rows)
                score = builder.fmul(total, out.load(scale, offset, rows))
                reaches = out.splat(out.load(reach, out.constant(4 * g), F32), GROUP)
                slack = builder.fmul(out.load(residual, offset, rows), per_residual)
                slack = builder.fadd(slack, builder.fmul(reaches, per_reach))
                score = builder.fsub(score, slack)
                better = builder.fcmp_ordered(">", score, best)
                if filtered:
                    mask = out.load(allow, out.constant(GROUP * g), ir.VectorType(I8, GROUP))
                    better = builder.and_(
                        better, builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, [0] * GROUP))
                    )
                best = builder.select(better, score, best)
            out.store(best, maxima, 0)
            return ir.Constant(I64, 0)

        return types.int64(sums, scale, residual, reach, slopes, allow, maxima), emit

    return raise_maxima


_raise_all, _raise_allowed = _raise_maxima(filtered=False), _raise_maxima(filtered=True)


@jit()
def sample(
    table: Table, asked: Asked, out: Out, first: int, span: Span, stride: int, width: int, maxima: FloatArray
) -> None:
    """Raise `maxima` (B, L) float32, L a multiple of 16, by every `stride`-th tile of a span, round robin.

    Tiles are `width` queries wide; the queries' filters are `first` further on in the batch.
    """
    allow, n_rows, quads = out.allow, table.items.shape[0], np.int64(table.codes.shape[1])
    end_group = min(span.end_group, n_rows // TILE_ROWS * TILE_GROUPS)  # not the rows of zeros that pad the last tile
    sums, config = on_cache_lines(4 * width * TILE_ROWS), np.empty(64, np.uint8)
    open_tiles(width, quads, config)
    codes_at, weights_at, biases_at = address_of(table.codes), address_of(asked.weights), address_of(asked.biases)
    scale_at, residual_at, reach_at = address_of(table.scale), address_of(table.residual), address_of(table.reach)
    slopes = asked.slopes if stride == 1 else np.zeros_like(asked.slopes)
    allow_at, maxima_at, sums_at, slopes_at = (
        address_of(allow),
        address_of(maxima),
        address_of(sums),
        address_of(slopes),
    )
    group_bytes, query_bytes, row_bytes = quads * GROUP * QUAD, asked.weights.strides[0], maxima.strides[0]
    step, slots, slot = TILE_GROUPS * stride, maxima.shape[1] // GROUP, 0
    for group in range(span.first_group, end_group, step):
        ahead, at = codes_at + (group + step) * group_bytes, 4 * GROUP * group
        scales, residuals, reaches = scale_at + at, residual_at + at, reach_at + 4 * group
        for byte in range(0, TILE_GROUPS * group_bytes, LINE_BYTES):
            prefetch(ahead + byte)
        for q in range(span.first_query, span.end_query, width):
            weights, biases = weights_at + q * query_bytes, biases_at + 4 * GROUP * q
            tile_sums(width, codes_at + group * group_bytes, weights, biases, quads, sums_at)
            raised = maxima_at + q * row_bytes + 4 * GROUP * slot
            for i in range(min(width, span.end_query - q)):
                tile_at, slope_at, to = sums_at + 4 * TILE_ROWS * i, slopes_at + 8 * (q + i), raised + row_bytes * i
                if allow.shape[0] == 0:
                    _raise_all(tile_at, scales, residuals, reaches, slope_at, 0, to)
                else:
                    mask = allow_at + (first + q + i if allow.shape[0] > 1 else 0) * n_rows + group * GROUP
                    _raise_allowed(tile_at, scales, residuals, reaches, slope_at, mask, to)
        slot = slot + 1 if slot + 1 < slots else 0
    close_tiles(width)
    sums[0] = config[0] = slopes[0, 0]  # they are in use up to here


@jit()
def estimate(maxima: FloatArray, asked: Asked, q: int, k: int, stride: int, kept: Candidates) -> None:
    """Set the floors of query `q` from its maxima (P, B, L), for `k` rows that are better than all others.

    The rank in a sample is k / stride, and 4 standard deviations and a few more, so that the floor is hardly ever too
    high. Where there are not enough maxima for it, there is no floor.
    """
    expected = k / stride
    rank = k if stride == 1 else np.int64(np.ceil(expected + 4 * np.sqrt(expected) + 4))
    scores = maxima[:, q].copy().reshape(-1)
    if rank <= scores.size:
        floor = kth_largest(scores, scores.size, rank)
        kept.floors[:, q] = lowered(floor, asked.margins[q]) if stride == 1 else floor
