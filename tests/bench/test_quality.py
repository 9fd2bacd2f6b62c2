"""The bench of the recipes trains what is not there yet, exports it, and tells what it is worth and costs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import quality


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    user = np.repeat(np.arange(40), 8)
    item = (np.repeat(np.arange(40), 8) * 3 + np.tile(np.arange(8), 40)) % 50
    pl.DataFrame({"user_id": user, "item_id": item, "timestamp": np.tile(np.arange(8), 40)}).write_parquet(
        folder / "interactions.parquet"
    )
    pl.DataFrame({"item_id": np.arange(50), "title": [f"item {i}" for i in range(50)]}).write_parquet(
        folder / "items.parquet"
    )
    return folder


def test_a_row_for_each_recipe(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--recipe", "mf", "gru4rec", "--epochs", "1"]
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), *wanted]
    assert quality.main([*arguments, "--csv", str(tmp_path / "rows.csv")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["recipe"] for row in rows] == ["mf", "gru4rec"]
    for row in rows:
        assert 0 <= float(row["ndcg@10"]) <= float(row["hr@10"]) <= 1
        assert float(row["call_ms"]) > 0 and int(row["graph_bytes"]) > 1000
    # What has been trained is not trained again, and JSON is all that is printed.
    assert quality.main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert [row["ndcg@10"] for row in json.loads(printed.out)] == [float(row["ndcg@10"]) for row in rows]
    assert "training" not in printed.err
