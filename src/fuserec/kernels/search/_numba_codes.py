"""The scan of the codes: tiles of queries by rows, and what to do with the few rows that a tile lets through.

A first scan (`sift`) only collects candidates; they are scored later, from the rows (`_numba_rescore.py`). If it
collects too many to keep, a second scan (`refine`) scores each row that gets through at once, and needs no room.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray
from fuserec.kernels.packed import GROUP, QUAD, ByteArray
from fuserec.kernels.search._numba_candidates import OVERFLOW, Candidates, lowered, prune
from fuserec.kernels.search._numba_emit import LINE_BYTES, address_of, lowest_bit, on_cache_lines, prefetch
from fuserec.kernels.search._numba_hits import MOST_QUERIES, tile_hits
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_queries import Asked
from fuserec.kernels.search._numba_score import Out, dot, is_listed, pack_key, push, score_of
from fuserec.kernels.search._numba_tile import (
    TILE_GROUPS,
    TILE_ROWS,
    close_tiles,
    open_tiles,
    tile_sums,
)

_BLOCK_BYTES: Final = 1 << 13  # codes that stay in the first cache while all queries pass over them
_BLOCK_TILES: Final = 8  # at most, for narrow codes
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
def _worst(heap: IntArray, unit: float) -> float:
    """Return the score of the worst key of a full heap, in units of the query's scale and rounded down."""
    score = np.float64(score_of(heap[0]))
    if unit == 0:
        return score
    return float(min(max(np.nextafter(score / unit, -np.inf), -_LARGEST), _LARGEST))


@jit()
def _bounds(asked: Asked, span: Span, floors: FloatArray) -> FloatArray:
    """Return (.., 3) float32 for the queries of a span: both slopes, and a threshold to be above."""
    bounds = np.empty((span.end_query, 3), np.float32)
    for q in range(span.first_query, span.end_query):
        bounds[q, 0], bounds[q, 1] = asked.slopes[q, 0], asked.slopes[q, 1]
        bounds[q, 2] = lowered(floors[q], asked.margins[q])
    return bounds


# One long function on purpose: an array that is passed on has its reference counted, which is atomic and takes longer
# than all else that is done for a row. So the arrays are taken apart once, and calls in the loops are given numbers.
@jit()
def scan(
    table: Table, asked: Asked, out: Out, first: int, span: Span, part: int, k: int, kept: Candidates, heaps: Heaps,
    width: int, refining: bool,
) -> None:  # fmt: skip
    """Scan the codes of a span for its queries, whose filters are `first` further on in the batch.

    Tiles are `width` queries wide. Rows whose upper bound is above the query's threshold become candidates in `kept`;
    `refining`, they are scored into `heaps`.

    First all tiles of a block are multiplied, with no branch that depends on a sum: one that is mispredicted throws
    away the multiplications begun behind it. Then come the rows that got through.
    """
    items, scale, residual, reach = table.items, table.scale, table.residual, table.reach
    queries, units, margins = asked.queries, asked.units, asked.margins
    out_offsets, out_rows, allow = out.offsets, out.rows, out.allow
    kept_rows, low, high = kept.rows[part], kept.low[part], kept.high[part]
    counts, limits, floors = kept.counts[part], kept.limits[part], kept.floors[part]
    heap = part if refining else 0
    keys, sizes, scored = heaps.keys[heap], heaps.sizes[heap], heaps.scored[heap]
    n_rows, quads = items.shape[0], np.int64(table.codes.shape[1])
    sums = on_cache_lines(4 * width * TILE_ROWS * _BLOCK_TILES).view(np.int32)
    masks, hit = np.zeros(MOST_QUERIES * _BLOCK_TILES, np.uint32), np.empty(_BLOCK_TILES, np.int64)
    config = np.empty(64, np.uint8)
    open_tiles(width, quads, config)
    scratch = np.empty(low.shape[1], np.float32)
    bounds = _bounds(asked, span, floors)
    codes_at, weights_at, biases_at = address_of(table.codes), address_of(asked.weights), address_of(asked.biases)
    scale_at, residual_at, reach_at = address_of(scale), address_of(residual), address_of(reach)
    sums_at, bounds_at, masks_at = address_of(sums), address_of(bounds), address_of(masks)
    group_bytes, query_bytes = quads * GROUP * QUAD, asked.weights.strides[0]
    tile_bytes = TILE_GROUPS * group_bytes
    block = min(max(_BLOCK_BYTES // tile_bytes, 1), _BLOCK_TILES) * TILE_GROUPS
    # While the queries pass over one block, the next is asked for, a share with every tile.
    share = LINE_BYTES * (tile_bytes // LINE_BYTES // -(-(span.end_query - span.first_query) // width) + 1)
    for first_group in range(span.first_group, span.end_group, block):
        end_group = min(first_group + block, span.end_group)
        for first_query in range(span.first_query, span.end_query, width):
            first_byte = (first_query - span.first_query) // width * share
            end_byte = min(first_byte + share, tile_bytes)
            weights, biases = weights_at + first_query * query_bytes, biases_at + 4 * GROUP * first_query
            asking = min(width, span.end_query - first_query)
            tiles = 0
            for group in range(first_group, end_group, TILE_GROUPS):
                ahead = codes_at + (group + block) * group_bytes
                for byte in range(first_byte, end_byte, LINE_BYTES):
                    prefetch(ahead + byte)
                tile_at, rows_at = sums_at + 4 * width * TILE_ROWS * tiles, 4 * GROUP * group
                tile_sums(width, codes_at + group * group_bytes, weights, biases, quads, tile_at)
                hit[tiles] = tile_hits(
                    asking, tile_at, scale_at + rows_at, residual_at + rows_at, reach_at + 4 * group,
                    bounds_at + 12 * first_query, masks_at + 4 * MOST_QUERIES * tiles,
                )  # fmt: skip
                tiles += 1
            for tile in range(tiles):
                by_query = hit[tile]
                while by_query != 0:
                    i = lowest_bit(by_query)
                    by_query &= by_query - 1
                    q, b = first_query + i, first + first_query + i
                    through = np.int64(masks[tile * MOST_QUERIES + i])
                    while through != 0:
                        r = lowest_bit(through)
                        through &= through - 1
                        row = (first_group + tile * TILE_GROUPS) * GROUP + r
                        if row >= n_rows:
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
                                    bounds[q, 2] = lowered(_worst(keys[q], units[q]), margins[q])
                            continue
                        at = counts[q]
                        if at == OVERFLOW:
                            continue
                        lane = row % GROUP
                        total = np.float32(sums[(tile * width + i) * TILE_ROWS + r])
                        middle = total * scale[row // GROUP, lane]
                        slack = residual[row // GROUP, lane] * bounds[q, 0] + reach[row // GROUP] * bounds[q, 1]
                        slack += margins[q]
                        if not slack <= _LARGEST:  # infinite or no number: the row has an infinite residual
                            middle, slack = np.float32(0), np.float32(np.inf)
                        kept_rows[q, at], low[q, at], high[q, at] = row, middle - slack, middle + slack
                        counts[q] = at + 1
                        if at + 1 == limits[q]:
                            threshold = max(prune(kept, part, q, k, scratch), floors[q])
                            bounds[q, 2] = lowered(threshold, margins[q])
    close_tiles(width)
