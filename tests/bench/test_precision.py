"""The bench of precisions has a row for each engine that the ladder builds."""

import csv
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bench import precision
from fuserec.export import TARGETS


def test_a_row_for_each_engine(
    untrained: Callable[[str, Path], None],
    trace_once: Callable[[], AbstractContextManager[None]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    untrained("sasrec", tmp_path / "sasrec")
    table = tmp_path / "table.md"
    arguments = ["--checkpoint", str(tmp_path / "sasrec"), "--work", str(tmp_path), "--target", "sm75", "sm89"]
    with trace_once():
        assert precision.main([*arguments, "--csv", str(tmp_path / "rows.csv"), "--markdown", str(table)]) == 0
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [(target, name) for target in ("cpu", "sm75", "sm89") for name in TARGETS[target].precisions]
    assert [(row["target"], row["precision"]) for row in rows] == expected
    assert [row["target"] for row in rows if row["verdict"] == "published"] == ["cpu", "sm75", "sm89"]
    assert all((float(row["cpu_ms"] or 0) > 0) == (row["target"] == "cpu") for row in rows)
    assert all(int(row["bytes"]) > 1000 and 0 <= float(row["overlap@10"]) <= 1 for row in rows)
    assert "sasrec: " in capsys.readouterr().err
    lines = table.read_text().splitlines()
    graphs = {(row["target"] == "cpu", row["precision"]) for row in rows}
    assert len(lines) == 2 + len(graphs) and all(line.count("|") == lines[0].count("|") for line in lines)
