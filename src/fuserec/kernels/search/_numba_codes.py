# mypy: ignore-errors
# Numba types what is compiled here, and sees integers of 64 bits and raw addresses where mypy sees int.
"""The scan of the codes: tiles of queries by rows, and what to do with the few rows that a tile lets through.

A first scan (`sift`) only collects candidates; they are scored later, from the rows (`_numba_rescore.py`). If it
collects too many to keep, a second scan (`refine`) scores each row that gets through at once, and needs no room.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.kernels._arrays import Array, FloatArray, IntArray
from fuserec.kernels.packed import GROUP, QUAD, ByteArray
from fuserec.kernels.search._numba_candidates import OVERFLOW, Candidates, prune
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import WIDEST_TILE, Asked
from fuserec.kernels.search._numba_score import Out, dot, is_listed, pack_key, push, score_of
from fuserec.kernels.search._numba_tile import (
    TILE_GROUPS,
    TILE_ROWS,
    WEIGHT_DTYPE,
    hits,
    lowest_bit,
    tile_sums_1,
    tile_sums_4,
    tile_sums_8,
)

_BLOCK_BYTES: Final = 1 << 14  # codes that stay in the first cache while all queries pass over them
_WEIGHT_BYTES: Final = WEIGHT_DTYPE.itemsize
_LARGEST: Final = np.finfo(np.float32).max


class Table(NamedTuple):
    """The rows (N, D) and what `PackedCodes` has of them."""

    items: FloatArray
    codes: ByteArray
    scale: FloatArray
    residual: FloatArray
    reach: FloatArray


class Span(NamedTuple):
    """What one task scans: queries `first_query:end_query` of the launch, groups `first_group:end_group`."""

    first_query: int
    end_query: int
    first_group: int
    end_group: int


class Heaps(NamedTuple):
    """What `refine` writes: keys (P, B, k), how many there are (P, B), and how many rows were scored (P, B)."""

    keys: IntArray
    sizes: IntArray
    scored: IntArray


@jit()
def _lowered(threshold: float, margin: float) -> np.float32:
    """Return threshold - margin, rounded down; exactly the threshold for a query of zeros, whose margin is 0."""
    if margin == 0:
        return np.float32(threshold)
    return np.nextafter(np.float32(threshold - margin), np.float32(-np.inf))


@jit()
def _worst(heap: IntArray, unit: float) -> float:
    """Return the score of the worst key of a full heap, in units of the query's scale and rounded down."""
    score = np.float64(score_of(heap[0]))
    if unit == 0:
        return score
    return min(max(np.nextafter(score / unit, -np.inf), -_LARGEST), _LARGEST)


@jit()
def _tile(width: int, codes: int, weights: int, biases: int, quads: int, sums: int) -> None:
    if width == 8:
        tile_sums_8(codes, weights, biases, quads, sums)
    elif width == 4:
        tile_sums_4(codes, weights, biases, quads, sums)
    else:
        tile_sums_1(codes, weights, biases, quads, sums)


@jit()
def _bounds(asked: Asked, span: Span, floors: FloatArray) -> FloatArray:
    """Return (.., 3) float32 for the queries of a span and a tile beyond: both slopes, and a threshold to be above."""
    bounds = np.zeros((span.end_query + WIDEST_TILE, 3), np.float32)
    bounds[:, 2] = np.inf
    for q in range(span.first_query, span.end_query):
        bounds[q, 0], bounds[q, 1] = asked.slopes[q, 0], asked.slopes[q, 1]
        bounds[q, 2] = _lowered(floors[q], asked.margins[q])
    return bounds


@jit()
def _width(queries: int) -> int:
    """Return the width of the tiles that cover some queries."""
    if queries == 1:
        return 1
    return 4 if queries <= 4 else WIDEST_TILE


@jit()
def _at(array: Array) -> int:
    """Return the address of an array."""
    return np.int64(array.ctypes.data)


# One long function on purpose: an array that is passed on has its reference counted, which is atomic and takes longer
# than all else that is done for a row. So the arrays are taken apart once, and calls in the loops are given numbers.
@jit()
def scan(
    table: Table, asked: Asked, out: Out, first: int, span: Span, part: int, k: int, kept: Candidates, heaps: Heaps,
    refining: bool, stride: int,
) -> None:  # fmt: skip
    """Scan the codes of a span for its queries, whose filters are `first` further on in the batch.

    Rows whose upper bound is above the query's threshold become candidates in `kept`; `refining`, they are scored into
    `heaps`. Of every `stride` tiles of rows one is scanned.
    """
    items, scale, residual, reach = table.items, table.scale, table.residual, table.reach
    queries, units, margins = asked.queries, asked.units, asked.margins
    out_offsets, out_rows, allow = out.offsets, out.rows, out.allow
    kept_rows, low, high = kept.rows[part], kept.low[part], kept.high[part]
    counts, limits, floors = kept.counts[part], kept.limits[part], kept.floors[part]
    keys, sizes, scored = heaps.keys[part], heaps.sizes[part], heaps.scored[part]
    n_rows, quads = items.shape[0], np.int64(table.codes.shape[1])
    width = _width(span.end_query - span.first_query)
    sums = np.empty((WIDEST_TILE, TILE_ROWS), np.int32)
    scratch = np.empty(low.shape[1], np.float32)
    bounds = _bounds(asked, span, floors)
    codes_at, weights_at, biases_at = _at(table.codes), _at(asked.weights), _at(asked.biases)
    scale_at, residual_at, reach_at = _at(scale), _at(residual), _at(reach)
    sums_at, bounds_at = _at(sums), _at(bounds)
    group_bytes, query_bytes = quads * GROUP * QUAD, quads * QUAD * _WEIGHT_BYTES
    step = TILE_GROUPS * stride
    block = max(_BLOCK_BYTES // group_bytes // TILE_GROUPS, 1) * step
    for first_group in range(span.first_group, span.end_group, block):
        end_group = min(first_group + block, span.end_group)
        for first_query in range(span.first_query, span.end_query, width):
            weights, biases = weights_at + first_query * query_bytes, biases_at + 4 * first_query
            for group in range(first_group, end_group, step):
                _tile(width, codes_at + group * group_bytes, weights, biases, quads, sums_at)
                rows_at = 4 * GROUP * group
                for i in range(width):
                    q = first_query + i
                    through = hits(
                        sums_at + 4 * TILE_ROWS * i, scale_at + rows_at, residual_at + rows_at, reach_at + 4 * group,
                        bounds_at + 12 * q,
                    )  # fmt: skip
                    while through != 0:
                        r = lowest_bit(through)
                        through &= through - 1
                        row = group * GROUP + r
                        b = first + q
                        if row >= n_rows or q >= span.end_query:
                            continue
                        if allow.shape[0] > 0 and not allow[b if allow.shape[0] > 1 else 0, row]:
                            continue
                        if out_offsets[b] < out_offsets[b + 1] and is_listed(
                            out_rows, out_offsets[b], out_offsets[b + 1], row
                        ):
                            continue
                        if refining:
                            key = pack_key(dot(items, row, queries, q), row)
                            scored[q] += 1
                            if sizes[q] < keys.shape[1] or key > keys[q, 0]:
                                sizes[q] = push(keys[q], sizes[q], key)
                                if sizes[q] == keys.shape[1]:
                                    bounds[q, 2] = _lowered(_worst(keys[q], units[q]), margins[q])
                            continue
                        at = counts[q]
                        if at == OVERFLOW:
                            continue
                        lane = row % GROUP
                        middle = np.float32(sums[i, r]) * scale[row // GROUP, lane]
                        slack = residual[row // GROUP, lane] * bounds[q, 0] + reach[row // GROUP] * bounds[q, 1]
                        slack += margins[q]
                        if not slack <= _LARGEST:  # infinite or no number: the row has an infinite residual
                            middle, slack = np.float32(0), np.float32(np.inf)
                        kept_rows[q, at], low[q, at], high[q, at] = row, middle - slack, middle + slack
                        counts[q] = at + 1
                        if at + 1 == limits[q]:
                            threshold = max(prune(kept, part, q, k, scratch), floors[q])
                            bounds[q, 2] = _lowered(threshold, margins[q])
