"""What every scan of the CPU twin is made of: pooling, the score of one row, packed keys, filters."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from fuserec.kernels._arrays import BoolArray, FloatArray, IntArray
from fuserec.kernels.search import keys
from fuserec.kernels.search._numba_emit import intrinsic
from fuserec.kernels.search._numba_jit import jit

_LOW_32: Final = keys.MAX_ROWS - 1


class Bags(NamedTuple):
    """`Pool` without what only the host reads."""

    table: FloatArray
    ids: IntArray
    offsets: IntArray
    weights: FloatArray


class Out(NamedTuple):
    """`RowFilter` as numba takes it."""

    offsets: IntArray
    rows: IntArray
    allow: BoolArray


# Sums may be reordered, which is what lets them use vector registers; NaN and infinity keep their meaning. The order
# depends on the width of the row only, so equal rows score equal wherever they lie.
@jit(fastmath=frozenset({"reassoc", "contract", "nsz"}))
def dot(items: FloatArray, row: int, queries: FloatArray, query: int) -> np.float32:
    """Return the float32 score that answers are made of."""
    total = np.float32(0)
    for d in range(items.shape[1]):
        total += items[row, d] * queries[query, d]
    return total


@jit()
def pool_query(bags: Bags, b: int, normalize: bool, query: FloatArray) -> float:
    """Pool query `b` in float64, write it to `query` (D,), and return the sum of its absolute values."""
    start, stop = bags.offsets[b], bags.offsets[b + 1]
    dim = query.size
    total = np.zeros(dim, np.float64)
    for t in range(start, stop):
        weight = np.float64(bags.weights[t]) if bags.weights.size > 0 else 1.0
        for d in range(dim):
            total[d] += weight * bags.table[bags.ids[t], d]
    if bags.weights.size == 0 and stop > start:
        for d in range(dim):
            total[d] /= stop - start
    magnitude = 0.0
    squares = 0.0
    for d in range(dim):
        magnitude += abs(total[d])
        squares += total[d] * total[d]
    scale = 1.0 / np.sqrt(squares) if normalize and squares > 0 else 1.0
    for d in range(dim):
        query[d] = total[d] * scale
    return magnitude


@intrinsic
def _bits_of(_: Any, value: Any) -> Any:
    """The int32 with the bits of a float32."""
    return types.int32(types.float32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def _float_of(_: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""
    return types.float32(types.int32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.FloatType())


@jit()
def pack_key(score: np.float32, row: int) -> int:
    """Return the packed key of a score and a row; see `keys.py`."""
    return pack_bits(_bits_of(score), row)


@jit()
def score_of(key: int) -> np.float32:
    """Return the score in a packed key."""
    bits = key >> 32
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return np.float32(_float_of(np.int32(bits)))


@jit()
def row_of(key: int) -> int:
    """Return the row in a packed key."""
    return _LOW_32 - (key & _LOW_32)


@jit()
def pack_bits(bits: int, row: int) -> int:
    """Return the packed key of a float32 given by its bits."""
    if bits == -(2**31):  # -0.0 equals 0.0, so they must not differ as keys
        bits = 0
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return int((np.int64(bits) << 32) | (_LOW_32 - row))


@jit()
def push(heap: IntArray, size: int, key: int) -> int:
    """Put `key` into the min-heap of the best keys, in place of the worst when it is full; return the new size."""
    at = size
    if size < heap.size:
        while at > 0 and heap[(at - 1) // 2] > key:
            heap[at] = heap[(at - 1) // 2]
            at = (at - 1) // 2
        heap[at] = key
        return size + 1
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key
    return size


@jit()
def is_listed(rows: IntArray, start: int, stop: int, row: int) -> bool:
    """Return whether `row` is among the ascending `rows[start:stop]`."""
    end = stop
    while start < stop:
        middle = (start + stop) // 2
        if rows[middle] < row:
            start = middle + 1
        else:
            stop = middle
    return start < end and rows[start] == row


@jit()
def is_out(out: Out, b: int, row: int) -> bool:
    """Return whether the filters keep `row` from query `b`."""
    if out.allow.shape[0] > 0:
        mask = b if out.allow.shape[0] > 1 else 0
        if not out.allow[mask, row]:
            return True
    return is_listed(out.rows, out.offsets[b], out.offsets[b + 1], row)
