"""The float scan: exact scores of every row, for tables without codes and for what the codes could not prove.

Lemma: under a total order, the k best rows lie in the k contiguous blocks of rows with the best block maxima. So
`block_best_kernel` writes one key for each (query, block) and `reopen_kernel` writes the keys of the rows in the
blocks that were picked. Nothing of size B x N exists, k is unlimited, and filters hold before any maximum. For small
k, `keep_best_kernel` holds the best keys in registers and needs no second pass.
"""

import triton
import triton.language as tl

from fuserec.kernels.search._kernel_parts import EMPTY, kept_rows, pack


@triton.jit
def _keys(
    items_ptr, queries_ptr,
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,  # inputs
    offs_q, mask_q, first_row, n_rows, n_steps, n_seen_steps, stride_items, stride_queries, stride_allow,
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, ALLOW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_Q, BLOCK_N) of keys of q.e."""
    offs_n = first_row + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n_rows
    score = tl.full((BLOCK_Q, BLOCK_N), 0.0, tl.float32)
    # Both strides are multiples of 16 and the columns from dim on are zero, so that loads are as wide as they can be.
    for start in range(0, stride_items, BLOCK_D):
        offs_d = start + tl.arange(0, BLOCK_D)
        mask_d = (offs_d < stride_items)[None, :]
        pointers = queries_ptr + offs_q.to(tl.int64)[:, None] * stride_queries + offs_d[None, :]
        query = tl.load(pointers, mask=mask_q[:, None] & mask_d, other=0.0)
        pointers = items_ptr + offs_n[:, None] * stride_items + offs_d[None, :]
        item = tl.load(pointers, mask=mask_n[:, None] & mask_d, other=0.0).to(tl.float32)
        if BLOCK_Q == 1:
            score += tl.sum(item * query, axis=1)[None, :]
        else:
            # "ieee": the tensor cores' TF32 would round both factors to 10 bits.
            score = tl.dot(query, tl.trans(item), acc=score, input_precision="ieee")
    kept = kept_rows(
        out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,
        offs_q, mask_q, first_row, offs_n, n_rows, n_steps, n_seen_steps, stride_allow,
        EXCLUDE, SEEN, ALLOW, BLOCK_N,
    )  # fmt: skip
    return pack(score, offs_n[None, :], kept)


@triton.jit(do_not_specialize=["n_queries", "n_steps", "n_seen_steps"])
def block_best_kernel(
    best_ptr,  # outputs
    items_ptr, queries_ptr,
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,  # inputs
    n_queries, n_rows, n_steps, n_seen_steps, stride_items, stride_queries, stride_allow,  # sizes
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, ALLOW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_BEST: tl.constexpr,
):  # fmt: skip
    """best[b, j] = max of key(b, n) over the rows n of block j; one program does (BLOCK_Q, BLOCK_N) of b and n.

    Blocks have BLOCK_BEST rows, so a tile yields (BLOCK_Q, BLOCK_N // BLOCK_BEST) maxima. Programs of different
    queries and the same rows are neighbours, so that the rows are in the L2 cache for all but the first.
    """
    tl.static_assert(BLOCK_N % BLOCK_BEST == 0)
    n_query_tiles = tl.cdiv(n_queries, BLOCK_Q)
    pid = tl.program_id(0)
    tile = (pid // n_query_tiles).to(tl.int64)
    offs_q = (pid % n_query_tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    mask_q = offs_q < n_queries
    key = _keys(
        items_ptr, queries_ptr, out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,
        offs_q, mask_q, tile * BLOCK_N, n_rows, n_steps, n_seen_steps, stride_items, stride_queries, stride_allow,
        EXCLUDE, SEEN, ALLOW, BLOCK_Q, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    n_best: tl.constexpr = BLOCK_N // BLOCK_BEST
    best = tl.max(tl.reshape(key, (BLOCK_Q, n_best, BLOCK_BEST)), axis=2)
    n_blocks = tl.cdiv(n_rows, BLOCK_BEST)
    offs_best = tile * n_best + tl.arange(0, n_best)
    pointers = best_ptr + offs_q.to(tl.int64)[:, None] * n_blocks + offs_best[None, :]
    tl.store(pointers, best, mask=mask_q[:, None] & (offs_best < n_blocks)[None, :])


@triton.jit(do_not_specialize=["n_queries", "n_steps", "n_seen_steps", "n_picked"])
def reopen_kernel(
    keys_ptr,  # outputs
    picked_ptr,
    items_ptr, queries_ptr,
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,  # inputs
    n_queries, n_rows, n_steps, n_seen_steps, stride_items, stride_queries, stride_allow, n_picked,  # sizes
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, ALLOW: tl.constexpr, BLOCK_BEST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """keys[b, j, :] = keys of the BLOCK_BEST rows of block picked[b, j]; one program does one (b, j)."""
    pid = tl.program_id(0)
    offs_q = pid // n_picked + tl.arange(0, 1)
    first_row = tl.load(picked_ptr + pid) * BLOCK_BEST
    key = _keys(
        items_ptr, queries_ptr, out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,
        offs_q, offs_q < n_queries, first_row, n_rows, n_steps, n_seen_steps,
        stride_items, stride_queries, stride_allow,
        EXCLUDE, SEEN, ALLOW, 1, BLOCK_BEST, BLOCK_D,
    )  # fmt: skip
    pointers = keys_ptr + pid.to(tl.int64) * BLOCK_BEST + tl.arange(0, BLOCK_BEST)
    tl.store(pointers[None, :], key)


@triton.jit(do_not_specialize=["n_queries", "n_steps", "n_seen_steps", "tiles_a_program"])
def keep_best_kernel(
    keys_ptr,  # outputs
    items_ptr, queries_ptr,
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,  # inputs
    n_queries, n_rows, n_steps, n_seen_steps, stride_items, stride_queries, stride_allow, tiles_a_program,  # sizes
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, ALLOW: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """keys[b, p, :] = the KEEP best keys of the p-th run of `tiles_a_program` tiles of BLOCK_N rows, in any order.

    One program does one query and one run, and holds (1, KEEP) keys. A tile without a key above the least of them,
    which is nearly every tile, is not sorted.
    """
    tl.static_assert(BLOCK_N >= KEEP)
    pid = tl.program_id(0)
    run = (pid // n_queries).to(tl.int64)
    offs_q = pid % n_queries + tl.arange(0, 1)
    mask_q = offs_q < n_queries
    best = tl.full((1, KEEP), EMPTY, tl.int64)
    for step in range(tiles_a_program):
        tile = run * tiles_a_program + step
        key = _keys(
            items_ptr, queries_ptr, out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr,
            allow_ptr,
            offs_q, mask_q, tile * BLOCK_N, n_rows, n_steps, n_seen_steps, stride_items, stride_queries, stride_allow,
            EXCLUDE, SEEN, ALLOW, 1, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        if tl.max(key) > tl.min(best):
            both = tl.reshape(tl.join(best, tl.topk(key, KEEP)), (1, 2 * KEEP))
            best = tl.topk(both, KEEP)
    n_runs = tl.num_programs(0) // n_queries
    pointers = keys_ptr + (offs_q.to(tl.int64) * n_runs + run)[:, None] * KEEP + tl.arange(0, KEEP)[None, :]
    tl.store(pointers, best)
