"""The predicted bytes stay near the floor, and the prediction counts what it says."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench import roofline
from bench.traffic import traffic
from fuserec.kernels.search.gpu_config import Shape

ARCHS = sorted({device.arch for device in roofline.DEVICES})
SMALL = [batch for batch in roofline.BATCHES if batch <= 64]
# The float rows that the proof needs beyond the answer, a third of 64 x 1000 here, weigh against 1M rows of codes.
HEAVY = {(64, 1_000_000, dim, 1000) for dim in roofline.DIMS}


@pytest.mark.parametrize("arch", ARCHS)
def test_small_batches_move_little_more_than_they_must(arch: int) -> None:
    for batch, rows, dim, k in itertools.product(SMALL, roofline.ROWS, roofline.DIMS, roofline.KS):
        ratio = traffic(Shape(batch, rows, dim, k), arch).ratio
        assert 1 < ratio <= (1.3 if (batch, rows, dim, k) in HEAVY else 1.1), (batch, rows, dim, k)


def test_the_floor_is_codes_queries_and_the_answer() -> None:
    found = traffic(Shape(batch=2, rows=1_000_000, dim=100, k=10), 80)
    codes, queries, answer = 1_000_000 * (112 + 8), 2 * 112 * 4, 2 * 10 * (112 * 4 + 8)
    assert found.floor == codes + queries + answer


def test_a_batch_of_one_takes_as_long_as_its_codes() -> None:
    h100 = roofline.DEVICES[0]
    found = roofline.predict(h100, Shape(1, 10_000_000, 128, 100))
    assert found.bound_by == "memory"
    assert found.pass_1_s + found.pass_2_s == pytest.approx(10_000_000 * 136 / h100.memory, rel=0.02)


def test_all_shapes_beat_the_unfused_way() -> None:
    for found in roofline.predictions():
        assert found.unfused_s > 3 * (found.pass_1_s + found.pass_2_s), found


def test_the_table_and_the_plot_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline.main(["--csv", str(tmp_path / "r.csv"), "--plot", str(tmp_path / "r.png")]) == 0
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert len(lines) == 1 + len(list(roofline.predictions())) == len(capsys.readouterr().out.splitlines())
    assert (tmp_path / "r.png").stat().st_size > 10_000
