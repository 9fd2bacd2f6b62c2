"""Training masks units from an epoch on and keeps weights of no earlier one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fuserec.errors import UsageError
from fuserec.models.pruning import masked_units, pairs
from fuserec.train.data import DataSet
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run, TrainerOptions

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0, "epochs": 4}


def recipe(name: str, **options: Any) -> Any:
    return dataclasses.replace(RECIPES[name].config_type(), **SMALL | options)


@pytest.mark.parametrize("name", ["sasrec", "two-tower"])
def test_the_share_is_masked_in_the_checkpoint(name: str, cyclic: DataSet) -> None:
    checkpoint = RECIPES[name].train(cyclic, recipe(name, prune=0.5, prune_epoch=2), Run(progress=False))
    found = [masked_units(inner, outer) for _, inner, outer in pairs(checkpoint.module())]
    assert [int(units.sum()) for units in found] == [16] * len(found)
    n_units = 32 * len(found)
    expected = {"share": 0.5, "epoch": 2, "units": n_units, "masked": n_units // 2, "sparsity": 0.5}
    assert checkpoint.metrics["pruning"] == expected


def test_an_epoch_before_pruning_is_never_the_best(cyclic: DataSet) -> None:
    """With steps that learn nothing the first epoch would stay the best, and patience would end it in the second."""
    stuck = recipe("sasrec", prune=0.25, prune_epoch=3, learning_rate=1e-12, weight_decay=0.0, patience=1)
    metrics = RECIPES["sasrec"].train(cyclic, stuck, Run(progress=False)).metrics
    assert (metrics["best_epoch"], metrics["epochs"]) == (3, 4)
    assert metrics["pruning"]["sparsity"] == 0.25


def test_a_resumed_run_prunes_the_same_units(cyclic: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fuserec.train.retrieval import RetrievalTask

    def fail(task: RetrievalTask[Any, Any]) -> None:
        if task.current_epoch == 3:
            raise KeyError("power")

    options = recipe("sasrec", prune=0.5, prune_epoch=2)
    whole = RECIPES["sasrec"].train(cyclic, options, Run(progress=False))
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(RetrievalTask, "on_train_epoch_start", fail)
        RECIPES["sasrec"].train(cyclic, options, Run(progress=False, trainer=TrainerOptions(checkpoints=tmp_path)))
    resumed = RECIPES["sasrec"].train(cyclic, options, Run(progress=False, trainer=TrainerOptions(resume=tmp_path)))
    assert all(torch.equal(resumed.state[name], whole.state[name]) for name in whole.state)
    assert resumed.metrics["pruning"] == whole.metrics["pruning"]


def test_what_has_no_units_cannot_be_pruned(cyclic: DataSet) -> None:
    with pytest.raises(UsageError, match="GRU4Rec has no two linear layers in a row"):
        RECIPES["gru4rec"].train(cyclic, recipe("gru4rec", prune=0.5, prune_epoch=1), Run(progress=False))


def test_pruning_after_the_last_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="prune_epoch is 5; expected at most epochs = 4"):
        recipe("sasrec", prune=0.5)
    with pytest.raises(ValueError, match="prune is 1.0"):
        recipe("sasrec", prune=1.0)
