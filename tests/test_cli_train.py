"""`fuserec train` starts from checkpoints, has teachers and several tasks, and says what does not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

Run = Callable[..., tuple[int, str]]
SMALL = ["--epochs", "1", "--set", "dim=8", "--set", "max_history=6", "--json"]


def write_data(folder: Path, *, first_user: int = 0, first_time: int = 0, shift: int = 0, per_user: int = 8) -> Path:
    """Write 20 users who go through 30 items in steps of three."""
    folder.mkdir()
    user = np.repeat(np.arange(20), per_user)
    step = np.tile(np.arange(per_user), 20)
    item = (user * 3 + step * 3 + shift) % 30
    rating = (1 + item % 5).astype(np.float32)
    pl.DataFrame(
        {"user_id": user + first_user, "item_id": item, "timestamp": step + first_time, "rating": rating}
    ).write_parquet(folder / "interactions.parquet")
    items = {"item_id": np.arange(30), "title": [f"item {i}" for i in range(30)]}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture
def trained(fuserec: Run, tmp_path: Path) -> Path:
    data = write_data(tmp_path / "data")
    status, output = fuserec("train", "sasrec", "--data", data, "--out", tmp_path / "checkpoint", *SMALL)
    assert status == 0, output
    return tmp_path / "checkpoint"


def metrics(answer: tuple[int, str]) -> dict[str, Any]:
    status, output = answer
    assert status == 0, output
    document: dict[str, Any] = json.loads(output)
    return document


def test_continue_takes_the_recipe_and_its_options_from_the_checkpoint(
    fuserec: Run, trained: Path, tmp_path: Path
) -> None:
    new = write_data(tmp_path / "new", first_time=100, shift=1, per_user=2)
    arguments = ["train", "--continue", trained, "--data", new, "--out", tmp_path / "next", "--epochs", "1", "--json"]
    found = metrics(fuserec(*arguments))
    assert found["recipe_name"] == "sasrec" and found["recipe"]["dim"] == 8
    assert set(found["continued"]["before"]) == {"validation", "test"}
    users = pl.read_parquet(tmp_path / "next" / "users.parquet")
    assert users["history"].list.len().unique().to_list() == [10], "old and new history make one"


def test_transfer_keeps_the_sizes_and_learns_ids_anew(fuserec: Run, trained: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", first_user=500)
    found = metrics(
        fuserec("train", "--from", trained, "--data", other, "--out", tmp_path / "t", "--epochs", "1", "--json")
    )
    assert found["recipe"]["dim"] == 8 and "transferred" in found


def test_a_teacher_teaches_a_student(fuserec: Run, trained: Path, tmp_path: Path) -> None:
    arguments = ["--teacher", trained, "--student", "gru4rec", "--data", tmp_path / "data", "--out", tmp_path / "s"]
    found = metrics(fuserec("train", "distill", *arguments, *SMALL))
    assert found["recipe_name"] == "gru4rec"
    assert found["distilled"]["teacher"]["architecture"] == "sasrec"


def test_tasks_and_their_weights_reach_the_ranker(fuserec: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    arguments = ["--tasks", "click,rating", "--task-weights", "2,0.5", "--data", data, "--out", tmp_path / "r"]
    found = metrics(fuserec("train", "ranker-mlp", *arguments, *SMALL))
    assert found["tasks"] == ["click", "rating"]
    assert (found["recipe"]["click_weight"], found["recipe"]["rating_weight"]) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "no recipe came; expected one of two-tower", id="no recipe"),
        pytest.param(["distill"], "expected both", id="no teacher"),
        pytest.param(["distill", "--teacher", "{c}", "--student", "mf"], "student is 'mf'", id="no such student"),
        pytest.param(["sasrec", "--teacher", "{c}"], "expected `fuserec train distill`", id="teacher of nobody"),
        pytest.param(["--continue", "{c}", "--from", "{c}"], "expected one of them", id="two starts"),
        pytest.param(["gru4rec", "--continue", "{c}"], "made by sasrec, and gru4rec came", id="another recipe"),
        pytest.param(["sasrec", "--tasks", "click"], "this recipe has no tasks", id="no ranker"),
        pytest.param(["ranker-mlp", "--tasks", "clicks"], "'clicks'", id="no such task"),
        pytest.param(["ranker-mlp", "--task-weights", "1"], "without --tasks", id="weights alone"),
        pytest.param(["mf", "--private-epsilon", "1"], "private", id="not to be private"),
        pytest.param(["sasrec", "--clip", "1"], "without --private-epsilon", id="clip alone"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_trained(
    fuserec: Run, trained: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [argument.format(c=trained) for argument in arguments]
    status, output = fuserec("train", *given, "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert status == 2 and message in output, output
    assert not (tmp_path / "out").exists()
