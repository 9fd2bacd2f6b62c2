"""Between and after the scans: the floor, and pass 2 over the few rows that pass 1 let through.

No kernel sorts. The floor is a k-th largest number, found by counting (`kth_largest`). So is the threshold that leaves
few rows to be scored. And the place of a key in the answer is the number of keys above it, as no two are equal.
"""

import triton
import triton.language as tl

from fuserec.kernels.search._kernel_parts import (
    EMPTY,
    LEAST,
    is_listed,
    kth_largest,
    order_of,
    pack,
    row_of,
    score_of,
)

# Bits of `flags`.
PROVEN: tl.constexpr = tl.constexpr(1)
SOUND: tl.constexpr = tl.constexpr(2)


@triton.jit(do_not_specialize=["n_orders", "rank"])
def floor_kernel(
    floors_ptr,  # outputs
    sizes_ptr, orders_ptr,  # inputs
    n_orders, rank,  # sizes
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """floors[b] = the rank-th largest of the sampled maxima, a little less at most; one program does one query."""
    query = tl.program_id(0)
    if query < tl.load(sizes_ptr).to(tl.int32):
        order = kth_largest(orders_ptr + query.to(tl.int64) * n_orders, n_orders, rank, BLOCK_C)
        tl.store(floors_ptr + query, tl.where(order == LEAST, float("-inf"), score_of(order)))


@triton.jit(do_not_specialize=["n_steps", "n_seen_steps", "capacity"])
def prune_kernel(
    picked_ptr, n_picked_ptr, orders_ptr,  # outputs
    sizes_ptr, keys_ptr, counts_ptr, lengths_ptr, reaches_ptr,
    out_offsets_ptr, out_rows_ptr, seen_offsets_ptr, seen_rows_ptr, lists_ptr,  # inputs
    capacity, n_steps, n_seen_steps,  # sizes
    EXCLUDE: tl.constexpr, SEEN: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """picked[b, :n_picked[b]] = the keys that may be among the k best of query b; one program does one query.

    A row whose key holds the upper bound u has a score of at least u - 2 reach |q|. Of the rows that the query does not
    exclude, k have a score of at least the k-th largest of those lower bounds: a row whose upper bound is less is out.
    orders[b] holds the lower bounds meanwhile, LEAST for excluded rows. They are not kept from pass 1, where they would
    take 60 registers a thread in the loop over all rows.
    """
    query = tl.program_id(0)
    if query < tl.load(sizes_ptr).to(tl.int32):
        at = query.to(tl.int64) * capacity
        count = tl.minimum(tl.load(counts_ptr + query), capacity)
        length = tl.load(lengths_ptr + query)
        for start in range(0, count, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            mask_c = offs_c < count
            key = tl.load(keys_ptr + at + offs_c, mask=mask_c, other=EMPTY)
            row = tl.where(mask_c, row_of(key), 0)
            kept = mask_c
            if EXCLUDE:
                kept = kept & (is_listed(out_offsets_ptr, out_rows_ptr, query, row, mask_c, n_steps) == 0)
            if SEEN:
                one_list = tl.load(lists_ptr + query)
                kept = kept & (is_listed(seen_offsets_ptr, seen_rows_ptr, one_list, row, mask_c, n_seen_steps) == 0)
            reach = tl.load(reaches_ptr + row, mask=mask_c, other=0.0)
            lower = score_of((key >> 32).to(tl.int32)) - 2.0 * reach * length
            # Infinite bounds have no difference, and of that row nothing is known.
            order = tl.where(lower == lower, order_of(lower), LEAST + 1)
            tl.store(orders_ptr + at + offs_c, tl.where(kept, order, LEAST), mask=mask_c)
        tl.debug_barrier()  # what the threads of this program wrote is read back below by others of them
        threshold = kth_largest(orders_ptr + at, count, tl.load(sizes_ptr + 1).to(tl.int32), BLOCK_C)
        n_picked = tl.full((), 0, tl.int32)
        for start in range(0, count, BLOCK_C):
            offs_c = start + tl.arange(0, BLOCK_C)
            mask_c = offs_c < count
            key = tl.load(keys_ptr + at + offs_c, mask=mask_c, other=EMPTY)
            order = tl.load(orders_ptr + at + offs_c, mask=mask_c, other=LEAST)
            kept = (order > LEAST) & ((key >> 32).to(tl.int32) >= threshold)
            slot = n_picked + tl.cumsum(kept.to(tl.int32), axis=0) - 1
            tl.store(picked_ptr + at + slot, key, mask=kept)
            n_picked += tl.sum(kept.to(tl.int32), axis=0)
        tl.store(n_picked_ptr + query, n_picked)


@triton.jit(do_not_specialize=["capacity", "parts"])
def rescore_kernel(
    picked_ptr,  # in and out
    sizes_ptr, n_picked_ptr, items_ptr, queries_ptr,  # inputs
    capacity, parts, stride_items, stride_queries,  # sizes
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """picked[b, j] = key of q[b].e[row of picked[b, j]] in float32; one program does every `parts`-th BLOCK_C of j.

    Tile (BLOCK_C, BLOCK_D) of gathered rows, float32, float16 or bfloat16, on the device or in mapped host memory. Both
    strides are multiples of 16.
    """
    pid = tl.program_id(0)
    query = (pid // parts).to(tl.int64)
    if query < tl.load(sizes_ptr):
        n_picked = tl.load(n_picked_ptr + query)
        for first in range((pid % parts) * BLOCK_C, n_picked, parts * BLOCK_C):
            offs_c = first + tl.arange(0, BLOCK_C)
            mask_c = offs_c < n_picked
            key = tl.load(picked_ptr + query * capacity + offs_c, mask=mask_c, other=EMPTY)
            # Other threads of the program may have replaced the key already: the row in it stays the same.
            row = tl.where(mask_c, row_of(key), 0)
            score = tl.full((BLOCK_C,), 0.0, tl.float32)
            for start in range(0, stride_items, BLOCK_D):
                offs_d = start + tl.arange(0, BLOCK_D)
                mask_d = offs_d < stride_items
                vector = tl.load(queries_ptr + query * stride_queries + offs_d, mask=mask_d, other=0.0)
                pointers = items_ptr + row[:, None] * stride_items + offs_d[None, :]
                item = tl.load(pointers, mask=mask_c[:, None] & mask_d[None, :], other=0.0)
                score += tl.sum(item.to(tl.float32) * vector[None, :], axis=1)
            tl.store(picked_ptr + query * capacity + offs_c, pack(score, row, mask_c), mask=mask_c)


@triton.jit(do_not_specialize=["capacity", "parts", "k_columns"])
def place_kernel(
    found_ids_ptr, scores_ptr, flags_ptr, rescored_ptr,  # outputs
    sizes_ptr, picked_ptr, n_picked_ptr, counts_ptr, floors_ptr, magnitudes_ptr, limits_ptr, item_ids_ptr,  # inputs
    capacity, parts, k_columns,  # sizes
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """found_ids[b, r], scores[b, r] = item and score of the picked key with r keys above it; -1 and -inf in the tail.

    Tile (BLOCK_C, BLOCK_C) of comparisons; one program does every `parts`-th BLOCK_C of the keys, and of the tail. The
    first of each query tells whether its sizes[1] best are PROVEN: every key had room, and so many scores reach the
    floor below which rows were not let through. It is not where the bounds could have overflowed (limits[0]), and a
    query without a sound score (limits[1], limits[2]) has no items and NaN for scores.
    """
    pid = tl.program_id(0)
    query = (pid // parts).to(tl.int64)
    part = pid % parts
    if query < tl.load(sizes_ptr):
        n_picked = tl.load(n_picked_ptr + query)
        magnitude = tl.load(magnitudes_ptr + query)
        is_sound = (magnitude < tl.load(limits_ptr + 1)) & (magnitude >= tl.load(limits_ptr + 2))
        keys_ptr = picked_ptr + query * capacity
        first_slot = query * k_columns
        for first in range(part * BLOCK_C, n_picked, parts * BLOCK_C):
            offs_c = first + tl.arange(0, BLOCK_C)
            mask_c = offs_c < n_picked
            key = tl.load(keys_ptr + offs_c, mask=mask_c, other=EMPTY)
            place = tl.full((BLOCK_C,), 0, tl.int32)
            for start in range(0, n_picked, BLOCK_C):
                offs_o = start + tl.arange(0, BLOCK_C)
                other = tl.load(keys_ptr + offs_o, mask=offs_o < n_picked, other=EMPTY)
                place += tl.sum((other[None, :] > key[:, None]).to(tl.int32), axis=1)
            placed = mask_c & (place < k_columns)
            item_id = tl.load(item_ids_ptr + tl.where(mask_c, row_of(key), 0), mask=placed, other=-1)
            score = score_of((key >> 32).to(tl.int32))
            tl.store(found_ids_ptr + first_slot + place, tl.where(is_sound, item_id, -1), mask=placed)
            tl.store(scores_ptr + first_slot + place, tl.where(is_sound, score, float("nan")), mask=placed)
        for first in range(part * BLOCK_C, k_columns, parts * BLOCK_C):
            slot = first + tl.arange(0, BLOCK_C)
            tail = (slot >= n_picked) & (slot < k_columns)
            nothing = tl.where(is_sound, tl.full((BLOCK_C,), float("-inf"), tl.float32), float("nan"))
            tl.store(found_ids_ptr + first_slot + slot, tl.full((BLOCK_C,), -1, tl.int64), mask=tail)
            tl.store(scores_ptr + first_slot + slot, nothing, mask=tail)
        if part == 0:
            floor = tl.load(floors_ptr + query)
            reached = tl.full((BLOCK_C,), 0, tl.int32)
            for start in range(0, n_picked, BLOCK_C):
                offs_o = start + tl.arange(0, BLOCK_C)
                other = tl.load(keys_ptr + offs_o, mask=offs_o < n_picked, other=EMPTY)
                reached += ((offs_o < n_picked) & (score_of((other >> 32).to(tl.int32)) >= floor)).to(tl.int32)
            enough = (tl.sum(reached, axis=0) >= tl.load(sizes_ptr + 1).to(tl.int32)) | (floor == float("-inf"))
            has_room = tl.load(counts_ptr + query) <= capacity
            is_proven = enough & has_room & (magnitude < tl.load(limits_ptr))
            tl.store(flags_ptr + query, tl.where(is_proven, PROVEN, 0) | tl.where(is_sound, SOUND, 0))
            tl.store(rescored_ptr + query, n_picked)
