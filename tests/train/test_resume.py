"""A run that was interrupted and resumed ends bit for bit as one that was not."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from fuserec.errors import CheckpointError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import DataSet, read_folder
from fuserec.train.recipes import RECIPES
from fuserec.train.resume import STATE_FILE
from fuserec.train.run import Run, TrainerOptions

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 30}


class Interrupted(Exception):
    """In place of a power cut."""


def train(name: str, dataset: DataSet, trainer: TrainerOptions | None = None, **options: Any) -> Checkpoint:
    recipe = dataclasses.replace(RECIPES[name].config_type(), **SMALL | {"epochs": 5} | options)
    return RECIPES[name].train(dataset, recipe, Run(progress=False, trainer=trainer or TrainerOptions()))


def watch_epochs(monkeypatch: pytest.MonkeyPatch, *, fail_at: int | None = None) -> list[int]:
    """Return a list that every epoch is added to as it begins, counted from 0; fail at the one named."""
    from fuserec.train.retrieval import RetrievalTask

    begun: list[int] = []

    def note(task: RetrievalTask[Any, Any]) -> None:
        if task.current_epoch == fail_at:
            raise Interrupted
        begun.append(task.current_epoch)

    monkeypatch.setattr(RetrievalTask, "on_train_epoch_start", note)
    return begun


def assert_equal(resumed: Checkpoint, whole: Checkpoint) -> None:
    different = {key for key in whole.metrics if resumed.metrics[key] != whole.metrics[key]} - {"train_seconds"}
    assert not different, f"{different} differ"
    for name, tensor in whole.state.items():
        assert torch.equal(resumed.state[name], tensor), f"{name} differs"


@pytest.mark.parametrize("name", ["mf", "sasrec", "two-tower"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    name: str, cyclic: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, drawn negatives, the cuts of the windows, the moments of AdamW and the warm-up all go on."""
    whole = train(name, cyclic)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        watch_epochs(patch, fail_at=2)
        train(name, cyclic, TrainerOptions(checkpoints=tmp_path / "state"))
    begun = watch_epochs(monkeypatch)
    assert_equal(train(name, cyclic, TrainerOptions(resume=tmp_path / "state")), whole)
    assert begun == [2, 3, 4], "epochs were trained anew"


def test_a_finished_run_resumes_to_the_same_without_training(
    cyclic: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping ended it; the best epoch is an earlier one, and comes out of the state."""
    stuck = {"learning_rate": 1e-12, "weight_decay": 0.0, "patience": 2}
    whole = train("sasrec", cyclic, TrainerOptions(checkpoints=tmp_path / "state"), **stuck)
    assert (whole.metrics["best_epoch"], whole.metrics["epochs"]) == (1, 3)
    begun = watch_epochs(monkeypatch)
    assert_equal(train("sasrec", cyclic, TrainerOptions(resume=tmp_path / "state"), **stuck), whole)
    assert begun == []


def test_another_runs_state_is_refused(cyclic: DataSet, tmp_path: Path) -> None:
    train("sasrec", cyclic, TrainerOptions(checkpoints=tmp_path), epochs=1)
    resume = TrainerOptions(resume=tmp_path)
    with pytest.raises(CheckpointError, match="another run's: seed was 0 and is 1"):
        train("sasrec", cyclic, resume, epochs=2, seed=1)
    with pytest.raises(CheckpointError, match="architecture was 'sasrec' and is 'conv'"):
        train("conv", cyclic, resume, epochs=1)
    with pytest.raises(CheckpointError, match="accumulate was 1 and is 2"):
        train("sasrec", cyclic, dataclasses.replace(resume, accumulate=2), epochs=1)
    shorter = DataSet(cyclic.interactions[1:], cyclic.items)
    with pytest.raises(CheckpointError, match="data was '[0-9a-f]{64}' and is '[0-9a-f]{64}'"):
        train("sasrec", shorter, resume, epochs=1)


def test_a_run_resumes_with_fewer_epochs_to_the_best_so_far(cyclic: DataSet, tmp_path: Path) -> None:
    whole = train("mf", cyclic, TrainerOptions(checkpoints=tmp_path), epochs=4)
    fewer = train("mf", cyclic, TrainerOptions(resume=tmp_path), epochs=2)
    assert fewer.metrics["best_epoch"] == whole.metrics["best_epoch"]
    for name, tensor in whole.state.items():
        assert torch.equal(fewer.state[name], tensor), f"{name} differs"


def test_a_state_that_is_none_is_refused(cyclic: DataSet, tmp_path: Path) -> None:
    resume = TrainerOptions(resume=tmp_path)
    with pytest.raises(CheckpointError, match="holds no resume.safetensors"):
        train("sasrec", cyclic, resume)
    (tmp_path / STATE_FILE).write_bytes(b"half")
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        train("sasrec", cyclic, resume)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "8"}, "precision is '8'; expected one of 32-true"),
        ({"strategy": "horovod"}, "strategy is 'horovod'"),
        ({"accelerator": "abacus"}, "accelerator is 'abacus'"),
        ({"devices": 0}, "devices is 0; expected at least 1"),
        ({"accumulate": 0}, "accumulate is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainerOptions(**options)


def epochs_done(folder: Path) -> int:
    try:
        with safetensors.safe_open(folder / STATE_FILE, framework="np") as file:
            return int(json.loads(file.metadata()["progress"])["epoch"])
    except FileNotFoundError:
        return 0


def test_a_killed_process_resumes_bit_for_bit(cyclic: DataSet, data_folder: Path, tmp_path: Path) -> None:
    """Killed for good by the operating system, at whatever point of an epoch, and resumed by this other process."""
    command = [sys.executable, "-m", "fuserec.cli", "train", "gru4rec", "--data", data_folder, "--epochs", "8"]
    command += [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    state = tmp_path / "state"

    first = subprocess.Popen(
        [*command, "--out", tmp_path / "resumed", "--checkpoints", state], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 200
        while epochs_done(state) < 2:
            assert first.poll() is None, f"ended with {first.returncode} before its second epoch was saved"
            assert time.monotonic() < deadline, "no second epoch within 200 s"
            time.sleep(0.01)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert not (tmp_path / "resumed").exists()

    resumed = train("gru4rec", read_folder(data_folder), TrainerOptions(resume=state), epochs=8)
    assert_equal(resumed, train("gru4rec", cyclic, epochs=8))
