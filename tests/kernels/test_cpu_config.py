"""How the CPU twin cuts a search."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fuserec.kernels.search.cpu_config import choose_cpu_config


@pytest.mark.parametrize(
    ("batch", "rows", "threads", "parts"),
    [
        (1, 100, 8, (1, 1)),
        (1, 10**6, 1, (1, 1)),
        (1, 10**6, 8, (1, 8)),
        (64, 10**5, 8, (1, 8)),
        (65, 10**5, 8, (8, 1)),
        (65, 10**5, 1, (1, 1)),
        (64, 10**6, 8, (1, 16)),
        (65, 10**6, 8, (16, 1)),
    ],
)
def test_parts_of_a_scan_of_codes(batch: int, rows: int, threads: int, parts: tuple[int, int]) -> None:
    config = choose_cpu_config(batch, rows, 64, 10, threads, has_codes=True)
    assert config.scan == "codes"
    assert (config.query_parts, config.row_parts) == parts


@pytest.mark.parametrize(
    ("batch", "rows", "threads", "parts"),
    [(1, 100, 8, (1, 1)), (1, 10**6, 8, (1, 8)), (7, 10**6, 8, (1, 8)), (8, 10**6, 8, (8, 1)), (64, 10**4, 8, (8, 1))],
)
def test_parts_of_a_scan_of_rows(batch: int, rows: int, threads: int, parts: tuple[int, int]) -> None:
    config = choose_cpu_config(batch, rows, 64, 10, threads, has_codes=False)
    assert config.scan == "rows"
    assert (config.query_parts, config.row_parts) == parts


def test_codes_are_left_alone_where_they_could_not_narrow_the_rows_down() -> None:
    assert choose_cpu_config(1, 1000, 64, 250, 2, has_codes=True).scan == "codes"
    assert choose_cpu_config(1, 1000, 64, 251, 2, has_codes=True).scan == "rows"


def test_parts_that_are_none_are_refused() -> None:
    config = choose_cpu_config(1, 1000, 64, 10, 2, has_codes=True)
    for name in ("query_parts", "row_parts", "capacity"):
        with pytest.raises(ValueError, match="expected at least one part of each and one candidate"):
            replace(config, **{name: 0})
