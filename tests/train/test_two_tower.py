"""Training end to end on sequences with a rule, quietly, repeatably, into a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import pytest
import torch

from fuserec.errors import DataError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.two_tower import TwoTower
from fuserec.train.data import DataSet
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out
from fuserec.train.two_tower import TwoTowerRecipe, train_two_tower

RECIPE = TwoTowerRecipe(epochs=14, batch_size=16, dim=16, max_history=8, warmup_steps=5, learning_rate=1e-2, patience=5)
N_ITEMS = 60


@pytest.fixture(scope="module")
def trained(cyclic: DataSet) -> Checkpoint:
    return train_two_tower(cyclic, RECIPE, Run(progress=False))


def test_beats_chance_by_far(trained: Checkpoint) -> None:
    chance = 10 / N_ITEMS
    assert trained.metrics["test"]["hr@10"] > 4 * chance
    assert trained.metrics["test"]["ndcg@10"] > 0.5


def test_serves_unknown_users_from_their_history(trained: Checkpoint, cyclic: DataSet) -> None:
    model = trained.module()
    assert isinstance(model, TwoTower)
    split = leave_one_out(cyclic)
    histories = torch.from_numpy(split.test_histories.left_padded(split.evaluated, RECIPE.max_history))
    with torch.no_grad():
        vectors = model.user_tower(torch.zeros(len(histories), dtype=torch.int64), histories)
    best = (vectors @ model.item_vectors().T).topk(10).indices + 1
    hits = (best == torch.from_numpy(split.test_targets)[:, None]).any(dim=1)
    assert hits.double().mean() > 0.6


def test_equal_seeds_give_equal_weights_and_other_seeds_others(cyclic: DataSet) -> None:
    short = dataclasses.replace(RECIPE, epochs=2)
    torch.manual_seed(1)
    first = train_two_tower(cyclic, short, Run(progress=False))
    torch.manual_seed(2)
    second = train_two_tower(cyclic, short, Run(progress=False))
    other = train_two_tower(cyclic, dataclasses.replace(short, seed=1), Run(progress=False))
    assert first.metrics["test"] == second.metrics["test"]
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    name = "user_tower.item_embedding.weight"
    assert not torch.equal(first.state[name], other.state[name])


def test_the_callers_random_state_is_not_moved(cyclic: DataSet) -> None:
    before = torch.get_rng_state()
    train_two_tower(cyclic, dataclasses.replace(RECIPE, epochs=1), Run(progress=False))
    assert torch.equal(before, torch.get_rng_state())


def test_the_checkpoint_holds_catalogue_users_and_metrics(trained: Checkpoint, cyclic: DataSet, tmp_path: Path) -> None:
    trained.save(tmp_path / "checkpoint")
    loaded = Checkpoint.load(tmp_path / "checkpoint")
    assert loaded.items["item_id"].to_list() == cyclic.items["item_id"].to_list()
    assert loaded.items["count"].sum() == cyclic.interactions.height
    first = cyclic.interactions.filter(cyclic.interactions["user_id"] == loaded.users["user_id"][0])
    assert loaded.users["history"][0].to_list() == first.sort("timestamp")["item_id"].to_list()
    assert set(loaded.metrics) == {
        "protocol", "validation", "test", "epochs", "best_epoch", "train_seconds", "parameters", "n_test_users",
        "recipe", "recipe_name", "steps", "baselines",
    }  # fmt: skip
    assert TwoTowerRecipe(**loaded.metrics["recipe"]) == RECIPE
    assert json.loads(json.dumps(loaded.metrics)) == trained.metrics


def test_stops_early_and_keeps_the_best_epoch(cyclic: DataSet) -> None:
    # A step size that learns nothing: the first epoch stays the best.
    stuck = dataclasses.replace(RECIPE, learning_rate=1e-12, weight_decay=0.0, patience=2)
    metrics = train_two_tower(cyclic, stuck, Run(progress=False)).metrics
    assert (metrics["best_epoch"], metrics["epochs"]) == (1, 3)


def test_quiet_but_for_a_line_an_epoch(
    cyclic: DataSet,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        train_two_tower(cyclic, dataclasses.replace(RECIPE, epochs=1), Run(progress=False))
        assert capfd.readouterr() == ("", "")
        train_two_tower(cyclic, dataclasses.replace(RECIPE, epochs=1), Run(progress=True))
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(r"epoch 1 of 1: validation ndcg@10 0\.\d+, best 0\.\d+", err), "nobody looks at a bar in a file"
    assert {record.name for record in caplog.records} <= {"fuserec.train.retrieval"}
    assert list(tmp_path.iterdir()) == []


def test_sequences_too_short_to_learn_from(cyclic: DataSet) -> None:
    three_each = cyclic.interactions.group_by("user_id", maintain_order=True).head(3)
    with pytest.raises(DataError, match="expected at least one user with 4 interactions"):
        train_two_tower(DataSet(three_each, cyclic.items), RECIPE, Run(progress=False))


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("temperature", float("nan")), ("seed", -1),
     ("dim", 7), ("dropout", 1.5)],
)  # fmt: skip
def test_impossible_options_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is"):
        dataclasses.replace(RECIPE, **{field: value})
