"""The first launch of every search: the queries as they are scored, and clean counters."""

import triton
import triton.language as tl

from fuserec.kernels.search._kernel_parts import write_queries


@triton.jit
def prepare_kernel(
    queries_ptr, largests_ptr, lengths_ptr, magnitudes_ptr, floors_ptr, counts_ptr,  # outputs
    sizes_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr,  # inputs
    dim, stride_queries,  # sizes
    KIND: tl.constexpr, WEIGHTED: tl.constexpr, NORMALIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_POOL: tl.constexpr,
):  # fmt: skip
    """queries[b] = the query as it is scored; one program does BLOCK_Q of the sizes[0] queries.

    Beside it: the largest |queries[b, d]|, the length |queries[b]|, the sum of the absolute values before it is
    normalised, a floor of -inf and a count of 0. A launch of its own, as the kernels after it cut the rows into many
    programs: 50 rows pooled in each of 8000 tiles would add a third to the bytes of a scan of 1M x 128.
    """
    offs_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    mask_q = offs_q < tl.load(sizes_ptr).to(tl.int32)
    largest, length = write_queries(
        queries_ptr, magnitudes_ptr, table_ptr, ids_ptr, bags_ptr, weights_ptr, offs_q, mask_q, dim,
        stride_queries, KIND, WEIGHTED, NORMALIZE, BLOCK_Q, BLOCK_POOL,
    )  # fmt: skip
    tl.store(largests_ptr + offs_q, largest, mask=mask_q)
    tl.store(lengths_ptr + offs_q, length, mask=mask_q)
    tl.store(floors_ptr + offs_q, tl.full((BLOCK_Q,), float("-inf"), tl.float32), mask=mask_q)
    tl.store(counts_ptr + offs_q, tl.full((BLOCK_Q,), 0, tl.int32), mask=mask_q)
