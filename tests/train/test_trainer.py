"""What is handed to Lightning has its effect: accumulation, precision, TensorBoard, several devices."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.batches import Shard
from fuserec.train.data import DataSet
from fuserec.train.ragged import Ragged
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run, TrainerOptions
from fuserec.train.windows import WindowLoader

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0, "epochs": 2}


def train(dataset: DataSet, trainer: TrainerOptions | None = None, **options: Any) -> Checkpoint:
    recipe = dataclasses.replace(RECIPES["sasrec"].config_type(), **SMALL | options)
    return RECIPES["sasrec"].train(dataset, recipe, Run(progress=False, trainer=trainer or TrainerOptions()))


def pairs_only(n_users: int = 64, length: int = 11) -> DataSet:
    """64 users of 8 pairs each: with windows of one pair, every batch of 32 is full."""
    generator = np.random.default_rng(0)
    step = np.tile(np.arange(length), n_users)
    item = (np.repeat(generator.integers(0, 60, n_users), length) + step) % 60
    interactions = pl.DataFrame({"user_id": np.repeat(np.arange(n_users), length), "item_id": item, "timestamp": step})
    items = pl.DataFrame(
        {"item_id": np.arange(60), "title": [f"Part {n}" for n in range(60)], "genres": [[]] * 60, "year": [None] * 60},
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
    )
    return DataSet(interactions, items)


def test_two_accumulated_batches_are_one_of_twice_the_size() -> None:
    """Exactly so where every example counts alike: windows of one pair, no dropout."""
    options = {"max_history": 1, "dropout": 0.0, "epochs": 1}
    whole = train(pairs_only(), batch_size=32, **options)
    halves = train(pairs_only(), TrainerOptions(accumulate=2), batch_size=16, **options)
    assert whole.metrics["steps"] == halves.metrics["steps"] == 16
    for name, tensor in whole.state.items():
        torch.testing.assert_close(halves.state[name], tensor, rtol=0, atol=1e-5, msg=name)


def test_mixed_precision_trains_other_weights_and_scores_in_float32(cyclic: DataSet) -> None:
    full, mixed = (train(cyclic, TrainerOptions(precision=name)) for name in ("32-true", "bf16-mixed"))
    assert any(not torch.equal(mixed.state[name], tensor) for name, tensor in full.state.items())
    assert {tensor.dtype for tensor in mixed.state.values()} == {torch.float32}
    assert mixed.metrics["validation"]["ndcg@10"] == pytest.approx(full.metrics["validation"]["ndcg@10"], abs=0.05)


def test_tensorboard_gets_loss_rate_and_metric_of_every_epoch(cyclic: DataSet, tmp_path: Path) -> None:
    checkpoint = train(cyclic, TrainerOptions(tensorboard=tmp_path / "board"), epochs=3)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    found = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert len(found["train_loss"]) == len(found["ndcg@10"]) == len(found["lr-AdamW"]) == 3
    assert found["train_loss"][0] > found["train_loss"][2] > 0
    assert found["lr-AdamW"] == pytest.approx([1e-2] * 3)
    best = checkpoint.metrics["best_epoch"]
    assert found["ndcg@10"][best - 1] == pytest.approx(checkpoint.metrics["validation"]["ndcg@10"], rel=1e-5)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shards_of_a_batch_are_the_batch(world_size: int) -> None:
    lengths = np.array([3, 9, 25, 2])
    sequences = Ragged.from_lengths(np.arange(1, lengths.sum() + 1), lengths)

    def loader() -> WindowLoader:
        return WindowLoader(sequences, max_history=4, batch_size=5, seed=0)

    whole = list(loader())
    shards = [list(Shard(loader(), rank, world_size)) for rank in range(world_size)]
    assert {len(shard) for shard in shards} == {len(whole)}
    for number, batch in enumerate(whole):
        parts = torch.cat([shard[number].history for shard in shards])
        assert {tuple(row) for row in parts.tolist()} == {tuple(row) for row in batch.history.tolist()}
        assert all(type(shard[number]) is type(batch) and len(shard[number].user) for shard in shards)


def test_a_batch_smaller_than_the_devices_gives_each_something() -> None:
    sequences = Ragged.from_rows([[1, 2, 3]])
    shards = [list(Shard(WindowLoader(sequences, 8, 4, seed=0), rank, 3)) for rank in range(3)]
    assert len({len(shard) for shard in shards}) == 1
    assert all(len(batch.user) == 1 for shard in shards for batch in shard if len(batch.user) < 2)


def test_two_devices_do_what_one_does(tmp_path: Path) -> None:
    """Two real processes over gloo, which Lightning starts by repeating the command."""
    dataset = pairs_only()
    dataset.interactions.write_parquet(tmp_path / "interactions.parquet")
    dataset.items.write_parquet(tmp_path / "items.parquet")
    command = [sys.executable, "-m", "fuserec.cli", "train", "sasrec", "--data", tmp_path, "--out", tmp_path / "two"]
    command += ["--epochs", "1", "--batch-size", "32", "--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]
    command += ["--set", "max_history=1", "--set", "dropout=0", "--set", "dim=16", "--set", "warmup_steps=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: fuserec export") == 1, "both processes print"
    assert "GLOBAL_RANK" not in done.stderr
    two = Checkpoint.load(tmp_path / "two")

    one = train(dataset, epochs=1, batch_size=32, max_history=1, dropout=0.0, learning_rate=2e-3)
    assert two.metrics["steps"] == one.metrics["steps"] == 16
    assert two.metrics["test"] == pytest.approx(one.metrics["test"], abs=0.02)
    for name, tensor in one.state.items():
        torch.testing.assert_close(two.state[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is refused without a GPU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "gpu", "devices": 2}, "devices 2; expected at most 0"),
        ({"precision": "16-mixed"}, "'16-mixed' without a GPU"),
    ],
)
def test_what_the_machine_lacks_is_said(cyclic: DataSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(cyclic, TrainerOptions(**options))
