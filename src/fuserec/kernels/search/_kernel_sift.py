"""Pass 1 over the int8 codes: bounds that no score exceeds, computed while a quarter of the bytes stream by.

    bound(b, n) = unit[b] * scale[n] * sum_d w[b, d] c[n, d]  +  reach[n] * |q[b]|   >=   q[b].e[n]

`c` and `scale` are the codes of the items. `w` are integer codes of the query, made here from the float32 query that
`prepare_kernel` wrote, with up to 16 bits so that their error is lost beside that of the items; as two int8 halves,
w = 256 high + low, the tensor cores take them. `reach` holds all that may be missing; docs/gpu-kernels.md derives it.
"""

import triton
import triton.language as tl

from fuserec.kernels.search._kernel_parts import LEAST, kept_rows, order_of, pack


@triton.jit
def _query_codes(
    queries_ptr,  # inputs
    offs_q, mask_q, offs_d, stride_queries, per_unit,
    MMA: tl.constexpr,
):  # fmt: skip
    """Two tiles (BLOCK_Q, BLOCK_D), the codes w = round(q / unit) = 256 high + low: int8 halves, or 0 and int32 w."""
    pointers = queries_ptr + offs_q.to(tl.int64)[:, None] * stride_queries + offs_d[None, :]
    # stride_queries is a multiple of 16.
    query = tl.load(pointers, mask=mask_q[:, None] & (offs_d < stride_queries)[None, :], other=0.0)
    w = tl.floor(query * per_unit[:, None] + 0.5).to(tl.int32)
    if MMA:
        high = (w + 128) >> 8
        low = w - (high << 8)
        return high.to(tl.int8), low.to(tl.int8)
    else:
        return tl.zeros_like(w), w


@triton.jit
def _add_products(acc, codes, high, low, MMA: tl.constexpr):
    """Tile (BLOCK_N, BLOCK_Q) of int32: acc + sum_d codes[n, d] w[b, d]; `levels` keeps it within 31 bits."""
    if MMA:
        product = tl.dot(codes, tl.trans(high), out_dtype=tl.int32)
        return tl.dot(codes, tl.trans(low), acc=acc + product * 256, out_dtype=tl.int32)
    else:
        return acc + tl.sum(codes.to(tl.int32) * low, axis=1)[:, None]


@triton.jit(
    do_not_specialize=[
        "batch", "n_steps", "n_seen_steps", "n_tiles", "tiles_a_program", "tile_stride", "levels", "capacity"
    ]
)  # fmt: skip
def sift_kernel(
    orders_ptr, keys_ptr, counts_ptr,  # outputs
    sizes_ptr, queries_ptr, largests_ptr, lengths_ptr, floors_ptr,
    codes_ptr, scales_ptr, reaches_ptr,
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,  # inputs
    batch, n_rows, n_steps, n_seen_steps, n_tiles, tiles_a_program, tile_stride, levels, capacity,  # sizes
    stride_codes, stride_allow,
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, ALLOW: tl.constexpr,
    SAMPLE: tl.constexpr, MMA: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_BEST: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Bounds in tiles (BLOCK_N, BLOCK_Q); one program does one tile of queries and `tiles_a_program` tiles of rows.

    SAMPLE: every `tile_stride`-th tile of rows; orders[b, j] = order of the maximum over the BLOCK_BEST rows n of block
    j of the lower bound, the one above with `reach` taken off, LEAST where no row is left: so many blocks with a
    maximum above a floor, so many rows are for sure.
    Otherwise: the key of every row with bound(b, n) >= floors[b] is appended to keys[b], of which counts[b] tells the
    number, also beyond `capacity`. Rows that the mask forbids are left out of both; those that a query excludes are
    left out of the maxima here, and of the keys by `prune_kernel`, which has a thousand rows to look up and not all.
    Programs of different queries and the same rows are neighbours, so that the rows are in the L2 cache for all but
    the first. Of `batch` queries, sizes[0] are real; a program that has none reads nothing.
    """
    n_query_tiles = tl.cdiv(batch, BLOCK_Q)
    pid = tl.program_id(0)
    first_tile = (pid // n_query_tiles) * tiles_a_program
    first_query = (pid % n_query_tiles) * BLOCK_Q
    n_queries = tl.load(sizes_ptr).to(tl.int32)
    offs_q = first_query + tl.arange(0, BLOCK_Q)
    mask_q = offs_q < n_queries
    largest = tl.load(largests_ptr + offs_q, mask=mask_q, other=1.0)
    length = tl.load(lengths_ptr + offs_q, mask=mask_q, other=0.0)
    unit = largest / levels
    per_unit = levels / largest
    offs_d = tl.arange(0, BLOCK_D)
    if not WIDE:
        high, low = _query_codes(queries_ptr, offs_q, mask_q, offs_d, stride_codes, per_unit, MMA)
    if not SAMPLE:
        floor = tl.load(floors_ptr + offs_q, mask=mask_q, other=float("inf"))
    last_tile = tl.where(first_query < n_queries, tl.minimum(first_tile + tiles_a_program, n_tiles), first_tile)
    for tile in tl.range(first_tile, last_tile, num_stages=NUM_STAGES):
        first_row = (tile * tile_stride).to(tl.int64) * BLOCK_N
        offs_n = first_row + tl.arange(0, BLOCK_N)
        mask_n = offs_n < n_rows
        acc = tl.full((BLOCK_N, BLOCK_Q), 0, tl.int32)
        if WIDE:
            for start in range(0, stride_codes, BLOCK_D):
                part_d = start + offs_d
                high, low = _query_codes(queries_ptr, offs_q, mask_q, part_d, stride_codes, per_unit, MMA)
                pointers = codes_ptr + offs_n[:, None] * stride_codes + part_d[None, :]
                codes = tl.load(pointers, mask=mask_n[:, None] & (part_d < stride_codes)[None, :], other=0)
                acc = _add_products(acc, codes, high, low, MMA)
        else:
            pointers = codes_ptr + offs_n[:, None] * stride_codes + offs_d[None, :]
            codes = tl.load(pointers, mask=mask_n[:, None] & (offs_d < stride_codes)[None, :], other=0)
            acc = _add_products(acc, codes, high, low, MMA)
        scale = tl.load(scales_ptr + offs_n, mask=mask_n, other=0.0)
        reach = tl.load(reaches_ptr + offs_n, mask=mask_n, other=0.0)
        # Scale before unit: their product alone may underflow.
        product = acc.to(tl.float32) * scale[:, None] * unit[None, :]
        slack = reach[:, None] * length[None, :]
        kept = mask_n[:, None] & mask_q[None, :]
        if SAMPLE:
            kept = tl.trans(
                kept_rows(
                    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,
                    offs_q, mask_q, first_row, offs_n, n_rows, n_steps, n_seen_steps, stride_allow,
                    EXCLUDE, SEEN, ALLOW, BLOCK_N,
                )
            )  # fmt: skip
            n_best: tl.constexpr = BLOCK_N // BLOCK_BEST
            bound = tl.where(kept, product - slack, float("-inf"))
            best = tl.max(tl.reshape(bound, (n_best, BLOCK_BEST, BLOCK_Q)), axis=1)
            order = tl.where(best > float("-inf"), order_of(best), LEAST)
            offs_best = tile * n_best + tl.arange(0, n_best)
            pointers = orders_ptr + offs_q.to(tl.int64)[None, :] * (n_tiles * n_best) + offs_best[:, None]
            tl.store(pointers, order, mask=tl.broadcast_to(mask_q[None, :], (n_best, BLOCK_Q)))
        else:
            bound = product + slack
            kept = kept & (bound >= floor[None, :])
            if ALLOW:
                pointers = allow_ptr + offs_q.to(tl.int64)[None, :] * stride_allow + offs_n[:, None]
                kept = kept & (tl.load(pointers, mask=kept, other=0) != 0)
            # About one row of a thousand gets here, so an atomic each costs less than to count them first.
            # Added up, not broadcast: of a broadcast column the interpreter would read past the one pointer there is.
            pointers = counts_ptr + offs_q[None, :] + tl.full((BLOCK_N, BLOCK_Q), 0, tl.int32)
            slot = tl.atomic_add(pointers, 1, mask=kept, sem="relaxed")
            pointers = keys_ptr + offs_q.to(tl.int64)[None, :] * capacity + slot
            tl.store(pointers, pack(bound, offs_n[:, None], kept), mask=kept & (slot < capacity))
