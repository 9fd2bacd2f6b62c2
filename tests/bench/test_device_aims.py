"""The aims are evaluated from the rows alone: met, missed, or not measured, and never met for want of a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.device import aims, profiles
from bench.device._rows import write_rows
from bench.device.grid import Cell, aimed


def rows_of(cell: Cell, ours_us: float, theirs_us: float, **more: Any) -> list[dict[str, Any]]:
    base = {**cell.cells(), "state": "measured"}
    mine = {"contender": "fuserec", "device_us": ours_us, "host_us": 2 * ours_us, "exact": True}
    mine |= {"x_device": theirs_us / ours_us, "x_host": theirs_us / ours_us, "codes_of_copy_pct": 80.0}
    names = ("eager fp32", "compiled fp16")
    theirs = [{**base, "contender": name, "device_us": theirs_us, "host_us": 2 * theirs_us} for name in names]
    return [base | mine | more, *theirs]


def run(tmp_path: Path, cells: list[Cell], ours_us: float, theirs_us: float) -> dict[str, tuple[Any, str]]:
    write_rows(tmp_path / "times.csv", [row for cell in cells for row in rows_of(cell, ours_us, theirs_us)])
    return {row["aim"]: (row["got"], row["result"]) for row in aims.evaluate(tmp_path)}


def test_all_aims_of_the_search_are_met_by_one_that_is_fast_enough(tmp_path: Path) -> None:
    found = run(tmp_path, aimed(), 10.0, 100.0)
    results = [result for aim, (_, result) in found.items() if not aim.startswith("recommend")]
    assert results == [aims.MET] * len(results)


def test_a_slow_search_misses_them(tmp_path: Path) -> None:
    found = run(tmp_path, aimed(), 100.0, 90.0)
    assert found["1M x 128, k 100, batch 64, host to host"] == (0.9, aims.MISSED)
    assert found["10k x 64: the worst cell, times the best rival's time"] == (1.111, aims.MISSED)
    assert found["5M x 768, batch 64, k 128: times the compiled rival"] == (0.9, aims.MISSED)


def test_an_aim_with_a_cell_missing_is_not_measured(tmp_path: Path) -> None:
    for left_out in aimed():
        cells = [cell for cell in aimed() if cell != left_out]
        found = run(tmp_path, cells, 10.0, 100.0)
        unknown = [aim for aim, (_, result) in found.items() if result == aims.UNKNOWN and "recommend" not in aim]
        # The cell of 10M items and batch 64 is there to be compared with the one whose rows are on the host.
        assert unknown, left_out


def test_the_served_aim_compares_the_best_of_both(tmp_path: Path) -> None:
    rows = [
        {"items": 10_000_000, "contender": "fuserec", "qps": 5.0, "saturated_qps": None},
        {"items": 10_000_000, "contender": "fuserec", "saturated_qps": 900.0},
        {"items": 10_000_000, "contender": "rival on cuda 1x2", "saturated_qps": 100.0},
        {"items": 10_000_000, "contender": "rival on cuda 4x2", "saturated_qps": 200.0},
        {"items": 1_000_000, "contender": "rival on cuda 4x2", "saturated_qps": 800.0},
    ]
    write_rows(tmp_path / "served.csv", rows)
    assert aims.evaluate(tmp_path)[-1]["got"] == 4.5


COUNTERS = """==PROF== Connected to process 1
some line of the program
"ID","Process ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum","launch__registers_per_thread"
"","","","nsecond","byte","register/thread"
"0","1","sift_kernel","45,312","136,000,000","142"
"""


def test_counters_are_read_after_whatever_is_printed() -> None:
    (row,) = profiles.read_counters(COUNTERS)
    assert (row["kernel"], row["ncu_ns"], row["dram_bytes"], row["registers"]) == ("sift_kernel", 45312, 136e6, 142)
    assert row["sm_pct"] is None
    assert profiles.read_counters("==ERROR== Failed to initialize the profiler: LibraryNotLoaded") == []


@pytest.mark.parametrize(("at", "wanted"), [(0, "device 10.0 us"), (1, "-")])
def test_a_cell_is_told_in_one_line(at: int, wanted: str) -> None:
    found = rows_of(Cell(1000, 64), 10.0, 20.0, loses=False)
    if at:
        found = [{**Cell(1000, 64).cells(), "contender": "fuserec", "state": "not reached"}]
        wanted = "not reached"
    assert wanted in aims.line(found)
