"""What the GPU kernels share: pooling of queries, filters, packed keys (see `keys.py`), selection by counting."""

import triton
import triton.language as tl

EMPTY: tl.constexpr = tl.constexpr(-(2**63))
LOW_32: tl.constexpr = tl.constexpr(2**32 - 1)
MAGNITUDE_BITS: tl.constexpr = tl.constexpr(0x7FFFFFFF)
# Below `order_of` every number: of what does not count.
LEAST: tl.constexpr = tl.constexpr(-(2**31))
# Below this a query counts as this long, so that no reciprocal overflows; a wider bound is a bound too.
SHORTEST: tl.constexpr = tl.constexpr(1e-30)


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
        query = tl.full((BLOCK_Q, BLOCK_D), 0.0, tl.float32)
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
def write_queries(
    queries_ptr, magnitudes_ptr,  # outputs
    table_ptr, ids_ptr, bags_ptr, weights_ptr,  # inputs
    offs_q, mask_q, dim, stride_queries,
    KIND: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_POOL: tl.constexpr,
):  # fmt: skip
    """Rows (BLOCK_Q, stride_queries): q, or q / |q|, columns from dim on zero; magnitudes (BLOCK_Q,): sum of |q[b, d]|.

    Pooled in tiles (BLOCK_Q, BLOCK_POOL), twice, as the length is not known before the end. Returns the largest
    |q[b, d]| and the length |q[b]| of what was written, both (BLOCK_Q,).
    """
    magnitude = tl.full((BLOCK_Q,), 0.0, tl.float64)
    largest = tl.full((BLOCK_Q,), 0.0, tl.float32)
    for start in range(0, dim, BLOCK_POOL):
        offs_d = start + tl.arange(0, BLOCK_POOL)
        query = tl.abs(
            _pool(
                table_ptr, ids_ptr, bags_ptr, weights_ptr, offs_q, mask_q, offs_d, offs_d < dim, dim,
                KIND, WEIGHTED, BLOCK_Q, BLOCK_POOL,
            )
        )  # fmt: skip
        magnitude += tl.sum(query.to(tl.float64), axis=1)
        largest = tl.maximum(largest, tl.max(query, axis=1))
    tl.store(magnitudes_ptr + offs_q, magnitude, mask=mask_q)
    largest = tl.maximum(largest, SHORTEST)
    # Squares of q / largest neither overflow nor, where it matters, underflow.
    squares = tl.full((BLOCK_Q,), 0.0, tl.float32)
    for start in range(0, stride_queries, BLOCK_POOL):
        offs_d = start + tl.arange(0, BLOCK_POOL)
        query = _pool(
            table_ptr, ids_ptr, bags_ptr, weights_ptr, offs_q, mask_q, offs_d, offs_d < dim, dim,
            KIND, WEIGHTED, BLOCK_Q, BLOCK_POOL,
        )  # fmt: skip
        if not NORMALIZE:
            pointers = queries_ptr + offs_q.to(tl.int64)[:, None] * stride_queries + offs_d[None, :]
            tl.store(pointers, query, mask=mask_q[:, None] & (offs_d < stride_queries)[None, :])
        query /= largest[:, None]
        squares += tl.sum(query * query, axis=1)
    length = tl.sqrt(squares)
    if NORMALIZE:
        # A zero query is refused by the host; dividing it by 1 keeps the arithmetic quiet.
        length = tl.where(squares > 0.0, length, 1.0)
        for start in range(0, stride_queries, BLOCK_POOL):
            offs_d = start + tl.arange(0, BLOCK_POOL)
            query = _pool(
                table_ptr, ids_ptr, bags_ptr, weights_ptr, offs_q, mask_q, offs_d, offs_d < dim, dim,
                KIND, WEIGHTED, BLOCK_Q, BLOCK_POOL,
            )  # fmt: skip
            pointers = queries_ptr + offs_q.to(tl.int64)[:, None] * stride_queries + offs_d[None, :]
            query = query / largest[:, None] / length[:, None]
            tl.store(pointers, query, mask=mask_q[:, None] & (offs_d < stride_queries)[None, :])
        largest = 1.0 / length
        length = tl.full((BLOCK_Q,), 1.0, tl.float32)
    else:
        length *= largest
    return largest, length


@triton.jit
def lower_bound(rows_ptr, start, stop, target, n_steps):
    """First position in each ascending `rows[start:stop]` whose row is `target` or above; all of one shape."""
    for _ in range(n_steps):
        middle = (start + stop) // 2
        active = start < stop
        below = tl.load(rows_ptr + middle, mask=active, other=0) < target
        start = tl.where(active & below, middle + 1, start)
        stop = tl.where(active & (below == 0), middle, stop)
    return start


@triton.jit
def _drop_listed(
    kept, offsets_ptr, rows_ptr, lists, mask_q, first_row, offs_n, n_steps,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_Q, BLOCK_N): `kept`, without the rows of the list that each query has."""
    start = tl.load(offsets_ptr + lists, mask=mask_q, other=0)
    stop = tl.load(offsets_ptr + lists + 1, mask=mask_q, other=0)
    first = lower_bound(rows_ptr, start, stop, first_row, n_steps)
    last = lower_bound(rows_ptr, first, stop, first_row + BLOCK_N, n_steps)
    # Mostly no round at all: a query excludes hundreds of rows, a tile holds a hundred of millions.
    for t in range(tl.max(last - first, axis=0).to(tl.int32)):
        row = tl.load(rows_ptr + first + t, mask=first + t < last, other=-1)
        kept = kept & (offs_n[None, :] != row[:, None])
    return kept


@triton.jit
def kept_rows(
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr, allow_ptr,  # inputs
    offs_q, mask_q, first_row, offs_n, n_rows, n_steps, n_seen_steps, stride_allow,
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, ALLOW: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Tile (BLOCK_Q, BLOCK_N) of bools: the row exists, the mask allows it, and the query does not exclude it.

    EXCLUDE: the lists that came with the queries, list b for query b. SEEN: resident lists, list lists[b] for query b.
    """
    kept = mask_q[:, None] & (offs_n < n_rows)[None, :]
    if ALLOW:
        pointers = allow_ptr + offs_q.to(tl.int64)[:, None] * stride_allow + offs_n[None, :]
        kept = kept & (tl.load(pointers, mask=kept, other=0) != 0)
    if EXCLUDE:
        kept = _drop_listed(kept, out_offsets_ptr, out_rows_ptr, offs_q, mask_q, first_row, offs_n, n_steps, BLOCK_N)
    if SEEN:
        lists = tl.load(lists_ptr + offs_q, mask=mask_q, other=0)
        kept = _drop_listed(
            kept, seen_offsets_ptr, seen_rows_ptr, lists, mask_q, first_row, offs_n, n_seen_steps, BLOCK_N
        )
    return kept


@triton.jit
def is_listed(offsets_ptr, rows_ptr, one_list, row, mask, n_steps):
    """Tile of bools: `row` is in the list, one for the whole tile."""
    start = tl.load(offsets_ptr + one_list) + row * 0
    stop = tl.load(offsets_ptr + one_list + 1) + row * 0
    at = lower_bound(rows_ptr, start, stop, row, n_steps)
    return tl.load(rows_ptr + at, mask=mask & (at < stop), other=-1) == row


@triton.jit
def order_of(score):
    """Tile of int32 in the order of the float32 `score`."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ MAGNITUDE_BITS, bits)


@triton.jit
def score_of(order):
    """Tile of the float32 of which `order_of` makes `order`."""
    return tl.where(order < 0, order ^ MAGNITUDE_BITS, order).to(tl.float32, bitcast=True)


@triton.jit
def pack(score, row, kept):
    """Tile of keys: sortable(score) << 32 | (2^32 - 1 - row), or EMPTY where not kept; `row` broadcasts."""
    # -0.0 equals 0.0, so they must not differ as keys.
    bits = order_of(tl.where(score == 0.0, 0.0, score))
    # For 32 bits, `^` with all ones is the subtraction from 2^32 - 1.
    key = (bits.to(tl.int64) << 32) | (row ^ LOW_32)
    return tl.where(kept, key, EMPTY)


@triton.jit
def row_of(key):
    """Tile of int64 rows that `pack` put into the keys."""
    return (key & LOW_32) ^ LOW_32


@triton.jit
def kth_largest(orders_ptr, n, k, BLOCK: tl.constexpr):
    """The k-th largest of n int32 to its upper 24 bits, rounded down; LEAST if fewer than k are above LEAST.

    Four bits at a time from the top: the largest of sixteen values that k numbers still reach. Six rounds of counting
    numbers that lie in a cache, in tiles (BLOCK, 16), where a sorting network has a hundred rounds of exchanges.
    """
    found = tl.full((), LEAST, tl.int64)
    digits = tl.arange(0, 16).to(tl.int64)
    for step in range(6):
        trials = found + (digits << (28 - 4 * step))
        reached = tl.full((16,), 0, tl.int32)
        for start in range(0, n, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            order = tl.load(orders_ptr + offs, mask=offs < n, other=LEAST)
            reached += tl.sum((order[:, None] >= trials.to(tl.int32)[None, :]).to(tl.int32), axis=0)
        found = tl.max(tl.where((reached >= k) & (digits > 0), trials, found), axis=0)
    return found.to(tl.int32)
