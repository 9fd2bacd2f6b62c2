"""What is shown of a checkpoint calls things by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuserec import display


@pytest.mark.parametrize(("recipe", "asked"), [("dialogue", "questions"), ("sasrec", "users")])
def test_a_dialogue_is_scored_on_questions(recipe: str, asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    metrics: dict[str, Any] = {"validation": {"hr@1": 0.5}, "test": {"hr@1": 0.25}, "protocol": "held out"}
    metrics |= {"recipe_name": recipe, "n_test_users": 7, "epochs": 2, "best_epoch": 1, "parameters": 3}
    display.training(metrics | {"train_seconds": 1.0}, Path("checkpoint"))
    assert f"held out, 7 {asked}" in " ".join(capsys.readouterr().out.split())
