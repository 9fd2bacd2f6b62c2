"""The bench of cold items: ties count evenly, and there is a row for each baseline and tuning."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.cold_items import by_order, main
from tests.conftest import write_encoder


def test_a_target_without_ties_counts_by_its_rank() -> None:
    scores = np.arange(20.0)[None].repeat(3, axis=0)
    hits, gains = by_order(scores, np.array([19, 10, 9]))  # ranks 1, 10, 11
    assert hits.tolist() == [1, 1, 0]
    assert gains == pytest.approx([1, 1 / math.log2(11), 0])


def test_items_that_score_alike_count_as_their_average() -> None:
    hits, gains = by_order(np.zeros((1, 40)), np.array([7]))
    assert hits[0] == pytest.approx(10 / 40)
    assert gains[0] == pytest.approx(sum(1 / math.log2(rank + 1) for rank in range(1, 11)) / 40)
    scores = np.array([[2.0] * 9 + [1.0] * 4 + [-np.inf] * 5])  # places 10 to 13, of which one is within 10
    hits, gains = by_order(scores, np.array([9]))
    assert hits[0] == pytest.approx(1 / 4)
    assert gains[0] == pytest.approx(1 / math.log2(11) / 4)


def test_fewer_candidates_than_places_are_all_hits() -> None:
    hits, gains = by_order(np.array([[3.0, 2.0, 1.0]]), np.array([2]))
    assert hits[0] == 1
    assert gains[0] == pytest.approx(0.5)


def test_a_row_for_each_baseline_and_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    titles = [f"{'red' if row % 2 else 'blue'} thing {row}" for row in range(40)]
    write_encoder(tmp_path / "encoder", titles)
    generator = np.random.default_rng(0)
    items = np.stack([generator.permutation(20)[:8] * 2 + user % 2 for user in range(30)])
    user, place = np.repeat(np.arange(30), 8), np.tile(np.arange(8), 30)
    interactions = pl.DataFrame({"user_id": user, "item_id": items.reshape(-1), "timestamp": place})
    data = tmp_path / "data"
    data.mkdir()
    interactions.write_parquet(data / "interactions.parquet")
    pl.DataFrame({"item_id": np.arange(40), "title": titles}).write_parquet(data / "items.parquet")

    options = [
        f"encoder={tmp_path / 'encoder'}",
        "dim=16",
        "max_tokens=8",
        "epochs=1",
        "tuning_epochs=1",
        "lora_rank=2",
    ]
    settings = [part for option in options for part in ("--set", option)]
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--json", "--share", "0.3", *settings]
    assert main([*arguments, "--tuning", "lora", "frozen"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in table] == ["random", "popularity", "lora", "frozen"]
    by_name = {row["model"]: row for row in table}
    assert by_name["random"]["hr@10 cold"] == by_name["popularity"]["hr@10 cold"] == pytest.approx(10 / 12, abs=1e-4)
    assert by_name["popularity"]["hr@10 all"] == 0.0
    assert by_name["lora"]["tuned"] > 0 and by_name["frozen"]["tuned"] == 0
    for row in table:
        assert 0 <= row["ndcg@10 all"] <= row["hr@10 all"] <= row["hr@10 cold"] <= 1
