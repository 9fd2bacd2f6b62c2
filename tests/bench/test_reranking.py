"""The bench of re-ranking chooses a weight and reports what it did."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import reranking
from fuserec.train.data import read_folder
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run

SMALL = {"epochs": 4, "dim": 16, "max_history": 8, "learning_rate": 1e-2, "warmup_steps": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cycle of items, which an order-blind retriever cannot know and a ranker with a history can."""
    root = tmp_path_factory.mktemp("reranking")
    user, step = np.repeat(np.arange(40), 12), np.tile(np.arange(12), 40)
    data = root / "data"
    data.mkdir()
    pl.DataFrame({"user_id": user, "item_id": (user * 7 + step) % 50, "timestamp": step}).write_parquet(
        data / "interactions.parquet"
    )
    pl.DataFrame({"item_id": np.arange(50), "title": [f"item {i}" for i in range(50)]}).write_parquet(
        data / "items.parquet"
    )
    folders = {"data": data}
    for name, options in (("mf", {}), ("ranker-mlp", {"epochs": 12, "batch_size": 8})):
        folders[name] = root / name
        recipe = RECIPES[name].options({**SMALL, **options})
        RECIPES[name].train(read_folder(data), recipe, Run(progress=False)).save(folders[name])
    return folders


def test_a_ranker_that_knows_more_lifts_the_retriever(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(folders["data"]), "--retriever", str(folders["mf"])]
    arguments += ["--ranker", str(folders["ranker-mlp"]), "--candidates", "40", "--csv", str(tmp_path / "rows.csv")]
    assert reranking.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["retriever"], row["ranker"]) == ("mf", "ranker-mlp")
    assert float(row["ndcg_after"]) > float(row["ndcg_before"]) + 0.1
    assert float(row["gain_low"]) <= float(row["ndcg_after"]) - float(row["ndcg_before"]) <= float(row["gain_high"])
    assert 0 < float(row["weight"]) <= 1
    assert float(row["found"]) > 0.5


def test_json(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(folders["data"]), "--retriever", str(folders["mf"])]
    assert reranking.main([*arguments, "--ranker", str(folders["ranker-mlp"]), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["found"] == 1.0, "the candidates are the whole catalogue"
