"""Ctrl-C while a model is trained ends with status 130, and says what was kept and how to go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fuserec.models.checkpoint import Checkpoint
from fuserec.train.text import TextRecipe, train_text

TRAIN = [sys.executable, "-u", "-m", "fuserec.cli", "train", "mf", "--epochs", "100000", "--set", "patience=100000"]


def interrupted(*options: str | Path, after: str) -> tuple[int, str]:
    """Train until a line with `after` is on stderr, send SIGINT, and return the status and all of stderr."""
    process = subprocess.Popen(
        [*TRAIN, *options], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if after in line:
                process.send_signal(signal.SIGINT)
                break
        said += process.stderr.read()
    return process.returncode, said


def test_the_best_epoch_is_kept(data_folder: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / "state"
    status, said = interrupted("--data", data_folder, "--out", out, "--checkpoints", state, after="epoch 3 of")
    assert status == 130, said
    best = re.search(r"the best epoch so far is (\d+)", said)
    assert best, said
    assert Checkpoint.load(out).metrics["best_epoch"] == int(best[1])
    assert f"{out} is its best epoch" in said and f"--resume {state}" in said


def test_before_the_first_epoch_nothing_is_written(data_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    status, said = interrupted("--data", data_folder, "--out", out, after="training: ")
    assert status == 130, said
    assert not out.exists() and f"{out} was not written" in said and "--checkpoints" in said


def test_without_a_terminal_every_epoch_is_a_line(data_folder: Path, tmp_path: Path) -> None:
    command = [*TRAIN[:6], "--epochs", "2", "--data", data_folder, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all("validation ndcg@10" in line for line in lines)


def test_set_help_needs_no_data() -> None:
    done = subprocess.run([*TRAIN[:6], "--set", "help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^learning_rate +float +0\.\d+ +of AdamW", done.stdout, re.MULTILINE), done.stdout


def test_a_phase_after_an_interrupted_one_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    from fuserec.train.run import Interrupt, Run

    interrupt = Interrupt(lambda best: True)
    probed = object()

    def probe(*arguments: object) -> object:
        interrupt.keeps("epoch 1")
        return probed

    monkeypatch.setattr("fuserec.train.text.probe", probe)
    monkeypatch.setattr("fuserec.train.text.tune", lambda *arguments: pytest.fail("the second phase began"))
    assert train_text(None, TextRecipe(), Run(interrupt=interrupt)) is probed  # type: ignore[arg-type]
