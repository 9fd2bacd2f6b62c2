"""Shifted embeddings: of the length asked for, along the gradient, and worse than any random direction."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fuserec.models.sequential import SASRec
from fuserec.train.adversarial import ITEM_TABLE, adversarial_shift, loss_at, random_shift, robust_loss
from fuserec.train.data import DataSet
from fuserec.train.features import build_features
from fuserec.train.recipes import RECIPES
from fuserec.train.robust import RobustTask
from fuserec.train.run import Run
from fuserec.train.sequential import NextItemTask, SequentialRecipe
from fuserec.train.split import leave_one_out
from fuserec.train.two_tower import TwoTowerRecipe, TwoTowerTask, build_two_tower
from fuserec.train.windows import WindowBatch, WindowLoader

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "dropout": 0.0}


@pytest.fixture(params=["two-tower", "sasrec"])
def task(request: pytest.FixtureRequest, cyclic: DataSet) -> RobustTask:
    split = leave_one_out(cyclic)
    torch.manual_seed(0)
    if request.param == "two-tower":
        recipe = TwoTowerRecipe(**SMALL, user_dropout=0.0)
        return TwoTowerTask(build_two_tower(recipe, split, build_features(cyclic.items)), recipe, split)
    other = SequentialRecipe(**SMALL)
    return NextItemTask(SASRec(other.config(n_items=split.item_ids.size)), other, split)


@pytest.fixture
def batch(cyclic: DataSet) -> WindowBatch:
    return next(iter(WindowLoader(leave_one_out(cyclic).train, 8, 16, 0)))


def lengths(shift: Tensor) -> Tensor:
    return shift.norm(dim=1)


def test_the_shift_is_the_gradients_direction(task: RobustTask, batch: WindowBatch) -> None:
    table = task.get_parameter(ITEM_TABLE)
    shift = adversarial_shift(task(batch), table, 0.1)
    task(batch).backward()
    assert table.grad is not None
    learned = lengths(table.grad) > 0
    assert int(learned.sum()) > 10
    torch.testing.assert_close(lengths(shift), torch.where(learned, 0.1, 0.0))
    assert float(torch.cosine_similarity(shift[learned], table.grad[learned]).min()) > 0.999


def test_the_loss_rises_more_than_by_a_random_shift(task: RobustTask, batch: WindowBatch) -> None:
    table = task.get_parameter(ITEM_TABLE)
    loss = task(batch)
    worst = loss_at(task, batch, adversarial_shift(loss, table, 0.1)).item()
    torch.manual_seed(1)
    others = [loss_at(task, batch, random_shift(table, 0.1)).item() for _ in range(20)]
    assert worst > max(others) and worst > 1.01 * loss.item()


def test_noise_has_the_length_asked_for_and_spares_padding() -> None:
    torch.manual_seed(0)
    shift = random_shift(torch.zeros(400, 8), 0.3)
    assert torch.equal(shift[0], torch.zeros(8))
    torch.testing.assert_close(lengths(shift[1:]), torch.full((399,), 0.3))
    assert float(shift.mean(dim=0).abs().max()) < 0.03  # of all directions


def test_the_loss_is_the_sum_of_both_and_leaves_the_table_alone(task: RobustTask, batch: WindowBatch) -> None:
    table = task.get_parameter(ITEM_TABLE)
    before = table.detach().clone()
    plain = task(batch)
    assert torch.equal(robust_loss(task, batch, noise=0.0, epsilon=0.0, weight=1.0), plain)
    worst = loss_at(task, batch, adversarial_shift(plain, table, 0.2))
    robust = robust_loss(task, batch, noise=0.0, epsilon=0.2, weight=0.5)
    torch.testing.assert_close(robust, plain + 0.5 * worst)
    robust.backward()
    # Its gradient is of both terms, at the table itself.
    (expected,) = torch.autograd.grad(plain + 0.5 * worst, table)
    torch.testing.assert_close(table.grad, expected)
    assert torch.equal(table, before)


@pytest.mark.parametrize("options", [{"noise": 0.2}, {"adversarial": 0.2}, {"crop": 0.5, "reorder": 0.5, "mask": 0.2}])
@pytest.mark.parametrize("name", ["two-tower", "sasrec", "gru4rec", "bert4rec"])
def test_recipes_take_the_options_and_repeat(name: str, options: dict[str, float], cyclic: DataSet) -> None:
    recipe = RECIPES[name].config_type(**SMALL, epochs=1, **options)
    first, second = (RECIPES[name].train(cyclic, recipe, Run(progress=False)) for _ in range(2))
    plain = RECIPES[name].train(cyclic, RECIPES[name].config_type(**SMALL, epochs=1), Run(progress=False))
    tables = [one.state[ITEM_TABLE.removeprefix("model.")] for one in (first, second, plain)]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize(
    ("name", "value"), [("crop", 1.1), ("reorder", -0.1), ("mask", 2.0), ("noise", -1.0), ("adversarial", -0.1)]
)
def test_impossible_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        dataclasses.replace(SequentialRecipe(), **{name: value})
