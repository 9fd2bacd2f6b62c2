"""GPU twin of the search, in two passes over packed keys (see `keys.py`).

Lemma: under a total order, the k best rows lie in the k contiguous blocks of rows with the best block maxima. So
`block_best_kernel` writes one key for each (query, block) and `reopen_kernel` writes the keys of the rows in the
blocks that were picked. Nothing of size B x N exists, k is unlimited, and filters hold before any maximum.
"""

import triton
import triton.language as tl

EMPTY: tl.constexpr = tl.constexpr(-(2**63))
LOW_32: tl.constexpr = tl.constexpr(2**32 - 1)
MAGNITUDE_BITS: tl.constexpr = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _pool(
    table_ptr, ids_ptr, bags_ptr, weights_ptr,  # inputs
    offs_q, mask_q, offs_d, mask_d, dim,
    KIND: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_Q, BLOCK_D) of float32 queries: q = table[b], table[ids[b]], mean or sum_t w[t] table[ids[t]]."""
    if KIND == "bag":
        start = tl.load(bags_ptr + offs_q, mask=mask_q, other=0)
        length = tl.load(bags_ptr + offs_q + 1, mask=mask_q, other=0) - start
        query = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        for t in range(tl.max(length, axis=0).to(tl.int32)):
            mask_t = mask_q & (t < length)
            row = tl.load(ids_ptr + start + t, mask=mask_t, other=0)
            pointers = table_ptr + row[:, None] * dim + offs_d[None, :]
            value = tl.load(pointers, mask=mask_t[:, None] & mask_d[None, :], other=0.0)
            if WEIGHTED:
                value *= tl.load(weights_ptr + start + t, mask=mask_t, other=0.0)[:, None]
            query += value
        if not WEIGHTED:
            query /= tl.maximum(length, 1).to(tl.float32)[:, None]
    else:
        row = offs_q.to(tl.int64)
        if KIND == "lookup":
            row = tl.load(ids_ptr + offs_q, mask=mask_q, other=0)
        pointers = table_ptr + row[:, None] * dim + offs_d[None, :]
        query = tl.load(pointers, mask=mask_q[:, None] & mask_d[None, :], other=0.0)
    return query


@triton.jit
def _lower_bound(rows_ptr, start, stop, target, n_steps):
    """First position in each ascending `rows[start:stop]` (BLOCK_Q,) whose row is `target` or above."""
    for _ in range(n_steps):
        middle = (start + stop) // 2
        active = start < stop
        below = tl.load(rows_ptr + middle, mask=active, other=0) < target
        start = tl.where(active & below, middle + 1, start)
        stop = tl.where(active & (below == 0), middle, stop)
    return start


@triton.jit
def _kept(
    out_offsets_ptr, out_rows_ptr, allow_ptr,  # inputs
    offs_q, mask_q, first_row, offs_n, n_rows, n_steps, stride_allow,
    EXCLUDE: tl.constexpr, ALLOW: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_Q, BLOCK_N) of bools: the row exists, the mask allows it, and the query does not exclude it."""
    kept = mask_q[:, None] & (offs_n < n_rows)[None, :]
    if ALLOW:
        pointers = allow_ptr + offs_q.to(tl.int64)[:, None] * stride_allow + offs_n[None, :]
        kept = kept & (tl.load(pointers, mask=kept, other=0) != 0)
    if EXCLUDE:
        start = tl.load(out_offsets_ptr + offs_q, mask=mask_q, other=0)
        stop = tl.load(out_offsets_ptr + offs_q + 1, mask=mask_q, other=0)
        first = _lower_bound(out_rows_ptr, start, stop, first_row, n_steps)
        last = _lower_bound(out_rows_ptr, first, stop, first_row + BLOCK_N, n_steps)
        # Mostly no round at all: a query excludes hundreds of rows, a tile holds a hundred of millions.
        for t in range(tl.max(last - first, axis=0).to(tl.int32)):
            row = tl.load(out_rows_ptr + first + t, mask=first + t < last, other=-1)
            kept = kept & (offs_n[None, :] != row[:, None])
    return kept


@triton.jit
def _pack(score, offs_n, kept):
    """Tile of keys: sortable(score) << 32 | (2^32 - 1 - row), or EMPTY where not kept."""
    # -0.0 equals 0.0, so they must not differ as keys.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ MAGNITUDE_BITS, bits)
    # For 32 bits, `^` with all ones is the subtraction from 2^32 - 1.
    key = (bits.to(tl.int64) << 32) | (offs_n ^ LOW_32)[None, :]
    return tl.where(kept, key, EMPTY)


@triton.jit
def _keys(
    items_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr, out_offsets_ptr, out_rows_ptr, allow_ptr,  # inputs
    offs_q, mask_q, first_row, n_rows, dim, n_steps, stride_allow,
    KIND: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr, EXCLUDE: tl.constexpr, ALLOW: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_Q, BLOCK_N) of keys of q.e, or of q.e / |q|; and (BLOCK_Q,) sums of |q| in float64."""
    offs_n = first_row + tl.arange(0, BLOCK_N)
    mask_n = offs_n < n_rows
    score = tl.zeros((BLOCK_Q, BLOCK_N), tl.float32)
    magnitude = tl.zeros((BLOCK_Q,), tl.float64)
    squares = tl.zeros((BLOCK_Q,), tl.float64)
    for start in range(0, dim, BLOCK_D):
        offs_d = start + tl.arange(0, BLOCK_D)
        mask_d = offs_d < dim
        query = _pool(
            table_ptr, ids_ptr, bags_ptr, weights_ptr, offs_q, mask_q, offs_d, mask_d, dim,
            KIND, WEIGHTED, BLOCK_Q, BLOCK_D,
        )  # fmt: skip
        pointers = items_ptr + offs_n[:, None] * dim + offs_d[None, :]
        item = tl.load(pointers, mask=mask_n[:, None] & mask_d[None, :], other=0.0)
        if BLOCK_Q == 1:
            score += tl.sum(item * query, axis=1)[None, :]
        else:
            # "ieee": the tensor cores' TF32 would round both factors to 10 bits.
            score = tl.dot(query, tl.trans(item), acc=score, input_precision="ieee")
        magnitude += tl.sum(tl.abs(query), axis=1).to(tl.float64)
        if NORMALIZE:
            # float64, as a square may leave the range of float32 where the entry does not.
            squares += tl.sum(query.to(tl.float64) * query.to(tl.float64), axis=1)
    if NORMALIZE:
        # A zero query is refused by the host; dividing it by 1 keeps the arithmetic quiet.
        norm = tl.sqrt(tl.where(squares > 0.0, squares, 1.0))
        score *= (1.0 / norm).to(tl.float32)[:, None]
    kept = _kept(
        out_offsets_ptr, out_rows_ptr, allow_ptr, offs_q, mask_q, first_row, offs_n, n_rows, n_steps, stride_allow,
        EXCLUDE, ALLOW, BLOCK_N,
    )  # fmt: skip
    return _pack(score, offs_n, kept), magnitude


@triton.jit(do_not_specialize=["n_queries", "n_steps"])
def block_best_kernel(
    best_ptr, magnitudes_ptr,  # outputs
    items_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr, out_offsets_ptr, out_rows_ptr, allow_ptr,  # inputs
    n_queries, n_rows, dim, n_steps, stride_allow,  # sizes
    KIND: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr, EXCLUDE: tl.constexpr, ALLOW: tl.constexpr,
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
    key, magnitude = _keys(
        items_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr, out_offsets_ptr, out_rows_ptr, allow_ptr,
        offs_q, mask_q, tile * BLOCK_N, n_rows, dim, n_steps, stride_allow,
        KIND, WEIGHTED, NORMALIZE, EXCLUDE, ALLOW, BLOCK_Q, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    n_best: tl.constexpr = BLOCK_N // BLOCK_BEST
    best = tl.max(tl.reshape(key, (BLOCK_Q, n_best, BLOCK_BEST)), axis=2)
    n_blocks = tl.cdiv(n_rows, BLOCK_BEST)
    offs_best = tile * n_best + tl.arange(0, n_best)
    pointers = best_ptr + offs_q.to(tl.int64)[:, None] * n_blocks + offs_best[None, :]
    tl.store(pointers, best, mask=mask_q[:, None] & (offs_best < n_blocks)[None, :])
    if tile == 0:
        tl.store(magnitudes_ptr + offs_q, magnitude, mask=mask_q)


@triton.jit(do_not_specialize=["n_queries", "n_steps", "n_picked"])
def reopen_kernel(
    keys_ptr,  # outputs
    picked_ptr,
    items_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr, out_offsets_ptr, out_rows_ptr, allow_ptr,  # inputs
    n_queries, n_rows, dim, n_steps, stride_allow, n_picked,  # sizes
    KIND: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr, EXCLUDE: tl.constexpr, ALLOW: tl.constexpr,
    BLOCK_BEST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """keys[b, j, :] = keys of the BLOCK_BEST rows of block picked[b, j]; one program does one (b, j)."""
    pid = tl.program_id(0)
    offs_q = pid // n_picked + tl.arange(0, 1)
    first_row = tl.load(picked_ptr + pid) * BLOCK_BEST
    key, _ = _keys(
        items_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr, out_offsets_ptr, out_rows_ptr, allow_ptr,
        offs_q, offs_q < n_queries, first_row, n_rows, dim, n_steps, stride_allow,
        KIND, WEIGHTED, NORMALIZE, EXCLUDE, ALLOW, 1, BLOCK_BEST, BLOCK_D,
    )  # fmt: skip
    pointers = keys_ptr + pid.to(tl.int64) * BLOCK_BEST + tl.arange(0, BLOCK_BEST)
    tl.store(pointers[None, :], key)
