"""How the CPU twin cuts a search."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from fuserec.kernels.search.cpu_config import choose_cpu_config

choose = partial(choose_cpu_config, has_codes=True, widths=(1, 4, 8, 32))


@pytest.mark.parametrize(
    ("batch", "rows", "threads", "parts"),
    [
        (1, 100, 8, (1, 1)),
        (1, 10**6, 1, (1, 1)),
        (1, 10**6, 8, (1, 8)),
        (64, 10**4, 8, (8, 1)),
        (128, 10**5, 8, (1, 8)),
        (129, 10**5, 8, (8, 1)),
        (65, 10**5, 1, (1, 1)),
        (64, 10**6, 8, (1, 16)),
        (129, 10**6, 8, (16, 1)),
    ],
)
def test_parts_of_a_scan_of_codes(batch: int, rows: int, threads: int, parts: tuple[int, int]) -> None:
    config = choose(batch, rows, 64, 10, threads)
    assert config.scan == "codes"
    assert (config.query_parts, config.row_parts) == parts


@pytest.mark.parametrize(("rows", "parts"), [(10**4, 32), (10**6, 8)])
def test_no_part_takes_so_many_queries_that_their_candidates_fill_the_memory(rows: int, parts: int) -> None:
    assert choose(1024, rows, 64, 10, threads=1).query_parts == parts


@pytest.mark.parametrize(
    ("batch", "rows", "threads", "parts"),
    [(1, 100, 8, (1, 1)), (1, 10**6, 8, (1, 8)), (7, 10**6, 8, (1, 8)), (8, 10**6, 8, (8, 1)), (64, 10**4, 8, (8, 1))],
)
def test_parts_of_a_scan_of_rows(batch: int, rows: int, threads: int, parts: tuple[int, int]) -> None:
    config = choose(batch, rows, 64, 10, threads, has_codes=False)
    assert config.scan == "rows"
    assert (config.query_parts, config.row_parts) == parts


def test_codes_are_left_alone_where_they_could_not_narrow_the_rows_down() -> None:
    assert choose(1, 1000, 64, 250, 2).scan == "codes"
    assert choose(1, 1000, 64, 251, 2).scan == "rows"


@pytest.mark.parametrize(("batch", "tile"), [(1, 1), (2, 4), (4, 4), (5, 8), (8, 8), (9, 32), (300, 32)])
def test_the_narrowest_tile_that_takes_a_part(batch: int, tile: int) -> None:
    assert choose(batch, 10**6, 64, 10, 2).tile == tile


def test_two_threads_take_narrower_tiles_of_a_small_table() -> None:
    assert choose(8, 30_000, 64, 10, 2).tile == 4


@pytest.mark.parametrize(
    ("batch", "rows", "k", "stride"), [(2, 10**6, 10, 16), (2, 10**4, 10, 1), (1, 10**4, 10, 16), (2, 10**6, 10**5, 1)]
)
def test_large_tables_are_sampled(batch: int, rows: int, k: int, stride: int) -> None:
    assert choose(batch, rows, 64, k, 2).stride == stride


@pytest.mark.parametrize("k", [1, 100, 10_000])
def test_the_sample_has_room_for_more_than_the_rank_that_is_looked_up(k: int) -> None:
    config = choose(2, 10**6, 64, k, 2)
    assert config.lanes * config.row_parts >= 2 * k / config.stride


def test_parts_that_are_none_are_refused() -> None:
    config = choose(1, 1000, 64, 10, 2)
    for name in ("query_parts", "row_parts", "tile", "stride", "capacity"):
        with pytest.raises(ValueError, match="expected at least one part of each"):
            replace(config, **{name: 0})
    with pytest.raises(ValueError, match="expected a multiple of 16 lanes"):
        replace(config, lanes=17)
