"""Tiles that were timed on a device are taken where they fit; nothing is said to be timed that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuserec.kernels.aot import COMPUTE_CAPABILITIES
from fuserec.kernels.search import gpu_config
from fuserec.kernels.search.gpu_config import Shape, choose_config
from fuserec.kernels.search.gpu_timed import TIMED, Timed, TimedTiles, status, timed_tiles

README = Path(__file__).resolve().parents[2] / "README.md"
NARROW = TimedTiles(1, 128, 64, block_q=32, block_n=128, block_d=128, num_warps=8, num_stages=4)
ANY = TimedTiles(1, 4096, 1024, block_q=16, block_n=64, block_d=128, num_warps=4, num_stages=2)
MADE_UP = {90: Timed("a card", "2026-01-01", "abc", (NARROW, ANY))}


def test_the_first_entry_that_a_shape_fits_is_taken() -> None:
    assert timed_tiles(128, 64, 90, MADE_UP) is NARROW
    assert timed_tiles(129, 64, 90, MADE_UP) is ANY and timed_tiles(128, 65, 90, MADE_UP) is ANY
    assert timed_tiles(128, 2000, 90, MADE_UP) is None and timed_tiles(128, 64, 80, MADE_UP) is None


def test_a_search_runs_with_timed_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_config, "timed_tiles", lambda dim, batch, arch: timed_tiles(dim, batch, arch, MADE_UP))
    config = choose_config(Shape(8, 10**6, 128, 100), "int8", 90)
    assert (config.block_q, config.block_n, config.num_warps, config.num_stages) == (32, 128, 8, 4)
    assert choose_config(Shape(8, 10**6, 128, 100), "int8", 80).block_q == 16


def test_what_is_said_of_the_speed_is_what_was_timed() -> None:
    assert status(90, MADE_UP) == "timed on a card, 2026-01-01, commit abc"
    assert status(80, MADE_UP) == "not timed"
    assert set(TIMED) <= set(COMPUTE_CAPABILITIES)


@pytest.mark.parametrize("arch", COMPUTE_CAPABILITIES)
def test_the_readme_says_of_every_architecture_what_the_data_says(arch: int) -> None:
    (row,) = [
        line for line in README.read_text().splitlines() if line.startswith(f"| {arch / 10:.1f} ") and "search" in line
    ]
    assert status(arch) in row, f"README says {row!r} of {arch}, and gpu_timed.py says {status(arch)!r}"
