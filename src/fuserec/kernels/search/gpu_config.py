"""How a search on a GPU is cut into pieces; pure functions of its sizes, so that a choice can be tested and explained.

The tiles are those that compile without spills for every architecture (`python -m bench.cubins`), or those that were
fastest on a device of it, where `gpu_timed.py` has any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from fuserec.kernels.search.gpu_timed import timed_tiles

# Rows at 16 elements load in the widest words, whatever the width of the table is.
ALIGNMENT = 16
# How tables may be stored on the device: int8 codes beside either float dtype, or no codes.
Dtype = Literal["int8", "float32", "float16", "bfloat16"]
Method = Literal["sift", "blocks", "keep"]

# The interpreter follows the tiles of this one.
DEFAULT_ARCH = 80
# The best keys of a query in registers; beyond it the sort of a tile costs more than a second pass.
KEEP = 16
BLOCK_BEST = 32  # rows that share one maximum
# Wider rows are scanned in parts, as a tile of them would not fit shared memory.
WIDEST_TILE = 256
# Multiprocessors of the largest device (H100: 132) by the programs each holds: enough of them to fill it.
PROGRAMS = 132 * 4
# Threads of what is around the scans: a program scores a few dozen rows, counts a few thousand numbers.
RESCORE_ROWS, RESCORE_WARPS = 16, 4
COUNTED, COUNT_WARPS = 1024, 8
PLACED, PLACE_WARPS = 64, 4
POOL_QUERIES, POOL_COLUMNS, POOL_WARPS = 1, 128, 1
REOPEN_WARPS = 1
# What passed: its key, written and read; the sector of memory that its reach lies in; the order of its lower bound,
# written, and read again by the same program, so from its cache.
PASSING_BYTES = 2 * 8 + 32 + 4
_ROOM_UNIT = 256
_MISSED = 0.0065  # of a row's length, by codes of normal data
_SPARSEST = 256  # tiles a sampled one


@dataclass(frozen=True)
class Shape:
    """Sizes of one search: queries, rows and columns of the table, items wanted, longest list of excluded rows."""

    batch: int
    rows: int
    dim: int
    k: int
    excluded: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.rows, self.dim, self.k) < 1 or self.excluded < 0:
            raise ValueError(f"got {self}, expected sizes of at least 1")


@dataclass(frozen=True)
class GpuConfig:
    """Tiles of the kernels of pass 1.

    Attributes:
        method: "sift": int8 bounds, then float scores of what passed. "blocks": float block maxima, then the best
            blocks again. "keep": one float pass that keeps the best keys in registers.
        block_q: Queries a program.
        block_n: Rows a tile.
        block_d: Columns a tile.
        block_best: Rows that share one maximum.
        num_warps: Warps a program.
        num_stages: Tiles in flight, where the device copies to shared memory asynchronously.
        mma: The products are `tl.dot` on integers; otherwise multiply and sum.
    """

    method: Method
    block_q: int
    block_n: int
    block_d: int
    block_best: int
    num_warps: int
    num_stages: int
    mma: bool

    def __post_init__(self) -> None:
        sizes = (self.block_q, self.block_n, self.block_best, self.block_d, self.num_warps)
        if any(size < 1 or size & (size - 1) for size in sizes):
            raise ValueError(f"got {self}, expected powers of two")
        if self.block_n % self.block_best:
            raise ValueError(f"got {self}, expected block_best to divide block_n")
        if self.mma and (self.block_q < 16 or self.block_n < 16 or self.block_d < 32):
            raise ValueError(f"got {self}, expected mma tiles of at least 16 queries, 16 rows and 32 columns")


def choose_config(shape: Shape, dtype: Dtype, arch: int) -> GpuConfig:
    """Choose the tiles of pass 1.

    Args:
        shape: Sizes of the search.
        dtype: "int8" if the table has codes; else how its rows are stored.
        arch: Compute capability, 80 for 8.0.
    """
    width = power_of_two(max(shape.dim, 16))
    if dtype != "int8":
        return _scan_config(shape, width)
    wide = width > WIDEST_TILE
    if arch < 80:
        # Triton compiles no integer `tl.dot` before 8.0, so the products run on the ordinary cores: one query each.
        return GpuConfig(
            "sift",
            block_q=1,
            block_n=128,
            block_d=min(width, 128),
            block_best=BLOCK_BEST,
            num_warps=4,
            num_stages=1,
            mma=False,
        )
    # A tile of 16 queries serves batch 1 too: 15 idle columns cost less than the scan they hide behind, and the rows
    # are the M side of the product, so that 9.0 has its 64 even then.
    # But for 9.0, whose tensor cores read shared memory, the codes of the queries lie in registers: two bytes an entry
    # and once a warp. 64 of them do not fit, nor do 32 of the widest.
    block_q = min(64 if arch == 90 and width <= 128 else 32, max(16, power_of_two(shape.batch)))
    block_n = 128 if block_q == 16 and width <= 128 else 64
    widest = 64 if block_q == 32 and arch != 90 else 128  # the codes of 32 queries and 128 columns spill on 10.0
    if (timed := timed_tiles(shape.dim, shape.batch, arch)) is not None:
        return GpuConfig(
            "sift",
            block_q=timed.block_q,
            block_n=timed.block_n,
            block_d=timed.block_d,
            block_best=BLOCK_BEST,
            num_warps=timed.num_warps,
            num_stages=timed.num_stages,
            mma=True,
        )
    return GpuConfig(
        "sift",
        block_q=block_q,
        block_n=block_n,
        block_d=widest if wide else max(32, width),
        block_best=BLOCK_BEST,
        num_warps=4 if block_q < 64 and block_q * min(width, 256) <= 32 * 128 else 8,
        num_stages=2 if width > 128 or block_q == 64 else 3,
        mma=True,
    )


def _scan_config(shape: Shape, width: int) -> GpuConfig:
    block_d = min(width, 64)
    if shape.k <= KEEP and shape.batch < 16:
        return GpuConfig("keep", 1, 128, min(width, 32), block_best=128, num_warps=4, num_stages=1, mma=False)
    if shape.batch < 16:
        return GpuConfig("blocks", 1, 128, block_d, block_best=BLOCK_BEST, num_warps=4, num_stages=1, mma=False)
    return GpuConfig("blocks", 16, 64, min(width, 32), block_best=BLOCK_BEST, num_warps=4, num_stages=1, mma=False)


@dataclass(frozen=True)
class SiftPlan:
    """How many rows the bounds let through.

    Attributes:
        tile_stride: One tile of so many is sampled for the floor; 0 where every row is let through.
        rank: The floor is this largest of the sampled block maxima.
        capacity: Keys that a query has room for.
    """

    tile_stride: int
    rank: int
    capacity: int


def bound_growth(dim: int) -> float:
    """Return how many times more rows have a bound above a high score than have a score above it.

    Codes of normal data miss 0.0065 of a row's length, which is 0.0065 sqrt(D) deviations of the score; between 3.5 and
    4 deviations from the mean, where the best of millions lie, each deviation is e^4 of the rows. Measured on 1M rows,
    six queries, k = 100: 1.16 to 1.31 at D = 64, 1.23 to 1.39 at 128; on 500k rows 1.38 to 1.65 at 256.
    """
    return math.exp(4 * _MISSED * math.sqrt(dim))


def choose_plan(shape: Shape, config: GpuConfig) -> SiftPlan:
    """Choose the sample and the room so that the first proof holds, short of adversarial tables.

    Of the k best rows a sample of one tile in `s` holds about m = k / s, with a deviation of sqrt(m). The floor is
    taken at rank m + 6 sqrt(m) + 5, which lies below the k-th best row but in one search of many millions. About
    `rank * s` rows have a score above it, and `bound_growth` squared as many pass, as the floor is a lower bound.
    A dense sample costs a second reading of its codes, a sparse one room for keys: `s` is where both cost least.
    """
    tiles = -(-shape.rows // config.block_n)
    strides = [1 << power for power in range(_SPARSEST.bit_length()) if 32 << power <= tiles]
    stride = min(strides, key=lambda s: _plan_bytes(shape, s), default=1)
    rank, capacity = _rank(shape.k, stride), _capacity(shape, stride)
    sampled = -(-tiles // stride) * (config.block_n // config.block_best)
    if max(capacity, shape.k) >= shape.rows or rank > sampled:
        return SiftPlan(0, 0, shape.rows)
    return SiftPlan(stride, rank, max(capacity, expected_rescored(shape)))


def expected_rescored(shape: Shape) -> int:
    """Return how many rows of normal data pass 2 scores for a query: those above the k-th largest lower bound.

    A bound is `_MISSED` sqrt(D) deviations above the score, or below. Measured with four queries, in multiples of k;
    after it what this says. 1M rows, k = 100: 1.47 to 1.60 at D = 64, 1.51; 1.89 to 2.07 at D = 128, 1.78. 1M rows,
    k = 1000: 1.37 to 1.44, 1.41; 1.63 to 1.66, 1.63. 300k rows, k = 1000: 1.90 to 2.06 at D = 256, 1.84.
    """
    if shape.k >= shape.rows:
        return shape.rows
    normal = NormalDist()
    best = -normal.inv_cdf(shape.k / shape.rows)
    return min(shape.rows, math.ceil(shape.rows * normal.cdf(2 * _MISSED * math.sqrt(shape.dim) - best)))


def expected_passing(shape: Shape, stride: int) -> float:
    """Return how many rows of normal data pass the floor of a query, where one tile in `stride` is sampled."""
    return bound_growth(shape.dim) ** 2 * _rank(shape.k, stride) * stride


def _rank(k: int, stride: int) -> int:
    return math.ceil(k / stride + 6 * math.sqrt(k / stride) + 5)


def _capacity(shape: Shape, stride: int) -> int:
    return _ROOM_UNIT * math.ceil((2.5 * expected_passing(shape, stride) + shape.excluded) / _ROOM_UNIT)


def _plan_bytes(shape: Shape, stride: int) -> float:
    """Return the bytes that depend on the stride: codes read for the sample; keys and bounds of what passes."""
    return shape.rows * (shape.dim + 8) / stride + shape.batch * PASSING_BYTES * expected_passing(shape, stride)


def tiles_a_program(tiles: int, query_tiles: int) -> int:
    """Return the tiles of rows that one program scans, so that all programs run at once on the largest device."""
    return max(1, -(-tiles * query_tiles // PROGRAMS))


def programs_a_query(batch: int, blocks: int) -> int:
    """Return the programs that share the `blocks` of a query's keys: at least one, and no more than fill the device."""
    return max(1, min(blocks, PROGRAMS // batch))


def power_of_two(size: int) -> int:
    """Return the least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def query_levels(dim: int) -> int:
    """Return the largest query code: two int8 halves hold it, and sums of `dim` products with int8 fit 31 bits.

    The 128 are room for the sum of the upper halves alone, which may exceed the whole by so much a product.
    """
    return min(127 * 256 + 127, (2**31 - 1) // (127 * dim) - 128)


def rescore_columns(dim: int) -> int:
    """Return the columns that pass 2 loads at a time."""
    return min(power_of_two(max(dim, 16)), 128)


def state_bytes(
    rows: int, dim: int, itemsize: int = 4, *, rows_on: Literal["device", "host"] = "device", coded: bool = True
) -> int:
    """Return the bytes that a table takes on the device, without the buffers of searches.

    Args:
        rows: Items, N.
        dim: Columns, D.
        itemsize: Bytes an entry of the rows: 4 for float32, 2 for float16 and bfloat16.
        rows_on: Where the rows are.
        coded: The table has int8 codes.
    """
    return rows * _row_bytes(dim, itemsize, rows_on, coded)


def max_rows(
    device_bytes: int, dim: int, itemsize: int = 4, *, rows_on: Literal["device", "host"] = "device", coded: bool = True
) -> int:
    """Return how many items fit `device_bytes`; the other arguments are those of `state_bytes`."""
    return device_bytes // _row_bytes(dim, itemsize, rows_on, coded)


def _row_bytes(dim: int, itemsize: int, rows_on: str, coded: bool) -> int:
    width = -(-dim // ALIGNMENT) * ALIGNMENT
    item_id, scale_and_reach = 8, 8
    return item_id + (width + scale_and_reach if coded else 0) + (width * itemsize if rows_on == "device" else 0)
