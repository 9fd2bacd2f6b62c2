"""The bench of distillation tells teacher, student alone and student taught, each with its size."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import distillation


def test_a_row_for_the_teacher_and_two_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    user, step = np.repeat(np.arange(30), 8), np.tile(np.arange(8), 30)
    interactions = pl.DataFrame({"user_id": user, "item_id": (user * 3 + step) % 40, "timestamp": step})
    interactions.write_parquet(data / "interactions.parquet")
    pl.DataFrame({"item_id": np.arange(40), "title": [f"item {i}" for i in range(40)]}).write_parquet(
        data / "items.parquet"
    )
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--epochs", "1", "--seeds", "4"]
    arguments += ["--set", "dim=8", "--distill", "distill_weight=0.9", "--csv", str(tmp_path / "rows.csv")]
    assert distillation.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["seed"]) for row in rows] == [("teacher", "0"), ("alone", "4"), ("taught", "4")]
    parameters = [int(row["parameters"]) for row in rows]
    assert parameters[0] > parameters[1] == parameters[2]
    sizes = [int(row["graph_bytes"]) for row in rows]
    assert sizes[0] > sizes[1] == sizes[2]
