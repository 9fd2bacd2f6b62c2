"""The bench of the two-tower's options trains what is not there yet and says what each is worth."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench import ablation
from fuserec.errors import UsageError
from fuserec.train.data import DataSet, read_folder
from fuserec.train.split import leave_one_out


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


def test_a_row_for_each_variant(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--epochs", "1", "--variant", "bpr", "noise"]
    files = ["--csv", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "rows.png")]
    assert ablation.main([*arguments, *files]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["loss"], row["negatives"], row["other"]) for row in rows] == [
        ("bpr", "bpr", "uniform", ""),
        ("noise", "info-nce", "in-batch", "noise=0.3"),
    ]
    for row in rows:
        assert 0 <= float(row["ndcg@10"]) <= float(row["hr@10"]) <= 1
        assert 0 <= float(row["long_tail"]) <= 1
    assert (tmp_path / "rows.png").stat().st_size > 1000
    # What has been trained is not trained again, unless it was something else.
    assert ablation.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == printed.out and "training" not in again.err
    with pytest.raises(UsageError, match="trained with other options"):
        ablation.main([*arguments, "--seed", "1"])


def test_the_long_tail_is_all_but_the_fifth_that_is_consumed_most() -> None:
    counts = [30, 20, 9, 8, 7, 6, 5, 4, 3, 2]
    interactions = pl.DataFrame(
        {"user_id": np.arange(sum(counts)) // 3, "item_id": np.repeat(np.arange(10), counts), "timestamp": 0}
    )
    items = pl.DataFrame(
        {"item_id": np.arange(10), "title": [""] * 10, "genres": [[]] * 10, "year": [None] * 10},
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
    )
    split = leave_one_out(DataSet(interactions, items))
    assert ablation.long_tail_share(np.array([1, 2, 1, 2]), split) == 0.0
    assert ablation.long_tail_share(np.array([1, 3, 9, 10]), split) == 0.75


def test_what_is_recommended_is_new_to_the_user(data: Path, tmp_path: Path) -> None:
    dataset = read_folder(data)
    split = leave_one_out(dataset)
    checkpoint = ablation.checkpoint_of(ablation.TwoTowerRecipe(epochs=1), dataset, tmp_path / "one")
    shown = ablation.recommended(checkpoint.module(), split).reshape(40, 10)
    for row, items in enumerate(shown):
        assert not set(items.tolist()) & set(split.test_histories[row].tolist())
