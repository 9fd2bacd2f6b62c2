"""The choices for a GPU: tiles that fit the shape, and a sample that leaves room for the proof."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fuserec.kernels.aot import COMPUTE_CAPABILITIES
from fuserec.kernels.search.gpu_config import (
    Shape,
    choose_config,
    choose_plan,
    expected_rescored,
    query_levels,
    tiles_a_program,
)


@pytest.mark.parametrize("arch", COMPUTE_CAPABILITIES)
@pytest.mark.parametrize("dim", [1, 16, 17, 128, 256, 1025])
@pytest.mark.parametrize("batch", [1, 15, 16, 17, 1000])
def test_tiles_of_codes_fit_the_shape(batch: int, dim: int, arch: int) -> None:
    config = choose_config(Shape(batch, 10**6, dim, 100), "int8", arch)
    assert config.method == "sift"
    assert config.mma == (arch >= 80)
    assert config.block_q >= min(batch, 16) if config.mma else config.block_q == 1
    assert config.block_n % config.block_best == 0
    # Two halves of the codes of the queries and the tiles in flight fit the least shared memory of 8.x.
    assert config.num_stages * config.block_n * config.block_d <= 96 << 10


@pytest.mark.parametrize(
    ("batch", "k", "method"), [(1, 16, "keep"), (15, 1, "keep"), (16, 10, "blocks"), (1, 17, "blocks")]
)
def test_without_codes_small_k_of_small_batches_is_one_pass(batch: int, k: int, method: str) -> None:
    assert choose_config(Shape(batch, 1000, 64, k), "float32", 80).method == method
    assert choose_config(Shape(batch, 1000, 64, k), "float16", 80).method == method


def test_tiles_that_do_not_fit_are_refused() -> None:
    config = choose_config(Shape(1, 1000, 64, 10), "int8", 80)
    with pytest.raises(ValueError, match="expected powers of two"):
        replace(config, block_d=48)
    with pytest.raises(ValueError, match="expected block_best to divide block_n"):
        replace(config, block_best=2 * config.block_n)
    with pytest.raises(ValueError, match="expected mma tiles of at least 16 queries"):
        replace(config, block_q=8)
    with pytest.raises(ValueError, match="expected sizes of at least 1"):
        Shape(0, 1, 1, 1)


@pytest.mark.parametrize("rows", [1, 1000, 10**5, 10**6, 10**7])
@pytest.mark.parametrize("k", [1, 10, 100, 1000, 10**5])
@pytest.mark.parametrize("excluded", [0, 100])
def test_a_plan_has_room_for_what_it_lets_through(rows: int, k: int, excluded: int) -> None:
    shape = Shape(64, rows, 128, min(k, rows), excluded)
    config = choose_config(shape, "int8", 80)
    plan = choose_plan(shape, config)
    assert min(shape.k, plan.capacity) <= expected_rescored(shape) <= plan.capacity <= rows
    if plan.tile_stride:
        blocks = rows // config.block_n // plan.tile_stride * (config.block_n // config.block_best)
        assert shape.k / plan.tile_stride < plan.rank <= blocks + config.block_n // config.block_best
        assert plan.capacity >= 2 * plan.rank * plan.tile_stride + excluded
    else:
        assert plan.capacity == rows


@pytest.mark.parametrize("dim", [1, 128, 518, 1024, 60_000])
def test_sums_of_code_products_fit_31_bits(dim: int) -> None:
    levels = query_levels(dim)
    assert dim * 127 * (levels + 128) < 2**31
    assert levels <= 127 * 256 + 127, "more than two int8 halves hold"


def test_programs_cover_the_tiles() -> None:
    for tiles in (1, 527, 528, 529, 7813):
        each = tiles_a_program(tiles, 1)
        assert each >= 1 and -(-tiles // each) <= 528
