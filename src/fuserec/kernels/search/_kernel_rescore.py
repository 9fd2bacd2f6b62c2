"""Pass 2 over the few rows that pass 1 let through: drop the excluded ones, score the best of them in float32."""

import triton
import triton.language as tl

from fuserec.kernels.search._kernel_parts import EMPTY, lower_bound, pack, row_of


@triton.jit(do_not_specialize=["n_steps", "capacity"])
def screen_kernel(
    keys_ptr,  # in and out
    out_offsets_ptr, out_rows_ptr,  # inputs
    capacity, n_steps,  # sizes
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """keys[b, j] = EMPTY if query b excludes its row; one program does BLOCK_C keys of one query."""
    n_parts = tl.cdiv(capacity, BLOCK_C)
    pid = tl.program_id(0)
    query = pid // n_parts
    offs_c = (pid % n_parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    pointers = keys_ptr + query.to(tl.int64) * capacity + offs_c
    key = tl.load(pointers, mask=offs_c < capacity, other=EMPTY)
    row = row_of(key)
    start = tl.load(out_offsets_ptr + query) + tl.zeros((BLOCK_C,), tl.int64)
    stop = tl.load(out_offsets_ptr + query + 1) + tl.zeros((BLOCK_C,), tl.int64)
    at = lower_bound(out_rows_ptr, start, stop, row, n_steps)
    excluded = tl.load(out_rows_ptr + at, mask=at < stop, other=-1) == row
    tl.store(pointers, tl.where(excluded, EMPTY, key), mask=offs_c < capacity)


@triton.jit(do_not_specialize=["n_picked"])
def rescore_kernel(
    scored_ptr,  # outputs
    picked_ptr, items_ptr, queries_ptr,  # inputs
    n_picked, stride_items, stride_queries,  # sizes
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """scored[b, j] = key of q[b].e[row of picked[b, j]] in float32; one program does BLOCK_C of j for one b.

    Tile (BLOCK_C, BLOCK_D) of gathered rows, float32 or float16. Both strides are multiples of 16.
    """
    n_parts = tl.cdiv(n_picked, BLOCK_C)
    pid = tl.program_id(0)
    query = (pid // n_parts).to(tl.int64)
    offs_c = (pid % n_parts) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < n_picked
    key = tl.load(picked_ptr + query * n_picked + offs_c, mask=mask_c, other=EMPTY)
    kept = key != EMPTY
    row = tl.where(kept, row_of(key), 0)
    score = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, stride_items, BLOCK_D):
        offs_d = start + tl.arange(0, BLOCK_D)
        mask_d = offs_d < stride_items
        vector = tl.load(queries_ptr + query * stride_queries + offs_d, mask=mask_d, other=0.0)
        pointers = items_ptr + row[:, None] * stride_items + offs_d[None, :]
        item = tl.load(pointers, mask=kept[:, None] & mask_d[None, :], other=0.0)
        score += tl.sum(item.to(tl.float32) * vector[None, :], axis=1)
    tl.store(scored_ptr + query * n_picked + offs_c, pack(score, row, kept), mask=mask_c)
