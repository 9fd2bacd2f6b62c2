"""Private training: the bound on a user is exact, the noise is as large as promised, and the accounts are right."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from fuserec.errors import UsageError
from fuserec.models.sequential import SASRec
from fuserec.train.data import DataSet
from fuserec.train.privacy import Mechanism, PrivateTask, UserLoader
from fuserec.train.ragged import Ragged
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Privacy, Run, TrainerOptions
from fuserec.train.sequential import NextItemTask, SequentialRecipe
from fuserec.train.split import leave_one_out
from fuserec.train.windows import WindowBatch

RECIPE = SequentialRecipe(dim=16, max_history=8, batch_size=20, epochs=1, warmup_steps=0, dropout=0.0)


def gradients(model: SASRec) -> dict[str, torch.Tensor]:
    return {name: tensor.grad.clone() for name, tensor in model.named_parameters() if tensor.grad is not None}


class Step:
    """The gradient of one private step of a fixed set of users, outside of a trainer."""

    def __init__(self, dataset: DataSet, *, clip: float, noise_multiplier: float, scale: float = 1.0) -> None:
        split = leave_one_out(dataset)
        torch.manual_seed(0)
        self.model = SASRec(RECIPE.config(n_items=split.item_ids.size))
        task = NextItemTask(self.model, RECIPE, split)
        self.privacy = Privacy(1.0, clip=clip)
        self.task = PrivateTask(task, self.privacy, Mechanism(0.25, 4, noise_multiplier), n_users=80)
        step = task.training_step
        task.training_step = lambda batch, index: scale * step(batch, index)  # type: ignore[method-assign]
        self.users = next(iter(UserLoader(split.train, RECIPE.max_history, 0.25, windows=2)))

    def gradient(self, users: list[WindowBatch]) -> dict[str, torch.Tensor]:
        """Return what the optimizer is given."""
        self.task.attach(torch.optim.SGD(self.model.parameters(), lr=1.0))
        self.task.private_gradient(users)
        return gradients(self.model)

    def plain_gradient(self, user: WindowBatch) -> dict[str, torch.Tensor]:
        self.model.zero_grad()
        self.task.task.training_step(user, 0).backward()  # type: ignore[union-attr]
        return gradients(self.model)


def length(gradient: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in gradient.values()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_no_user_moves_the_weights_further_than_the_clip(cyclic: DataSet, scale: float) -> None:
    """Over all weights together, with the item table counted once though it is used twice."""
    step = Step(cyclic, clip=0.5, noise_multiplier=0.0, scale=scale)
    user = step.users[0]
    plain = step.plain_gradient(user)
    shrunk = min(1.0, 0.5 / length(plain))
    moved = step.gradient([user])
    for name, part in moved.items():
        torch.testing.assert_close(part * 20, plain[name] * shrunk, rtol=1e-3, atol=1e-5, msg=name)
    assert length(moved) * 20 <= 0.5 * (1 + 1e-4)
    if scale >= 1.0:
        assert length(moved) * 20 == pytest.approx(0.5, rel=1e-3), "a long gradient is cut to the clip, not below"


def test_users_add_up_each_clipped_by_itself(cyclic: DataSet) -> None:
    step = Step(cyclic, clip=0.5, noise_multiplier=0.0)
    assert len(step.users) > 3
    expected = {name: torch.zeros_like(tensor) for name, tensor in step.model.named_parameters()}
    for user in step.users:
        plain = step.plain_gradient(user)
        for name in expected:
            expected[name] += plain[name] * min(1.0, 0.5 / length(plain)) / 20
    for name, part in step.gradient(step.users).items():
        torch.testing.assert_close(part, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_noise_has_the_promised_scale_even_without_users(cyclic: DataSet) -> None:
    step = Step(cyclic, clip=0.5, noise_multiplier=3.0)
    noise = step.gradient([])
    padding = noise["user_tower.item_embedding.weight"][0]
    assert not padding.any(), "the row of padding must stay zero"
    noise["user_tower.item_embedding.weight"] = noise["user_tower.item_embedding.weight"][1:]
    drawn = torch.cat([part.reshape(-1) for part in noise.values()])
    # 5,000 and more draws: the deviation of the estimate is 1 %.
    assert float(drawn.std()) == pytest.approx(3.0 * 0.5 / 20, rel=0.05)
    assert abs(float(drawn.mean())) < 5 * float(drawn.std()) / math.sqrt(drawn.numel())


def test_the_noise_is_not_the_seeds(cyclic: DataSet) -> None:
    """Otherwise whoever reads the seed in metrics.json could take the noise away again."""
    recipe = dataclasses.replace(RECIPE, epochs=1)
    first, second = (
        RECIPES["sasrec"].train(cyclic, recipe, Run(progress=False, privacy=Privacy(8.0, 1e-3))) for _ in range(2)
    )
    assert not torch.equal(first.state["user_tower.norm.weight"], second.state["user_tower.norm.weight"])


@pytest.mark.parametrize("name", ["sasrec", "bert4rec", "gru4rec"])
def test_one_epoch_trains_and_accounts_for_itself(name: str, cyclic: DataSet) -> None:
    recipe = dataclasses.replace(
        RECIPES[name].config_type(), dim=16, max_history=8, batch_size=20, epochs=2, patience=1, warmup_steps=0
    )
    privacy = Privacy(8.0, 1e-3, clip=0.7, windows=2)
    checkpoint = RECIPES[name].train(cyclic, recipe, Run(progress=False, privacy=privacy))
    spent = checkpoint.metrics["privacy"]
    accountant = RDPAccountant()
    accountant.history = [(spent["noise_multiplier"], 0.25, 8)]
    assert spent["epsilon"] == accountant.get_epsilon(1e-3)
    assert 7.9 < spent["epsilon"] <= 8.0
    assert (spent["delta"], spent["clip"], spent["windows"], spent["sample_rate"], spent["steps"]) == (
        1e-3,
        0.7,
        2,
        0.25,
        8,
    )  # noqa: E501
    assert "users.parquet" in spent["covers"]
    assert (checkpoint.metrics["best_epoch"], checkpoint.metrics["epochs"]) == (2, 2), "validation must not choose"
    assert not checkpoint.state["user_tower.item_embedding.weight"][0].any()


def test_less_epsilon_takes_more_noise() -> None:
    options: dict[str, Any] = {"n_users": 1000, "users_per_step": 50, "epochs": 5}
    loose, strict = (Mechanism.calibrate(Privacy(epsilon), **options) for epsilon in (8.0, 1.0))
    assert loose.steps == strict.steps == 100
    assert strict.noise_multiplier > 2 * loose.noise_multiplier


def test_a_user_is_drawn_with_the_stated_probability_and_at_most_so_many_windows() -> None:
    lengths = np.array([1, 2, 30, 100] * 25)
    sequences = Ragged.from_lengths(np.arange(1, lengths.sum() + 1), lengths)
    loader = UserLoader(sequences, max_history=5, sample_rate=0.2, windows=3)
    loader.generator = np.random.default_rng(0)
    steps = [step for _ in range(40) for step in loader]
    assert len(steps) == 200
    # 200 steps x 75 users x 0.2, a deviation of 49.
    assert sum(len(step) for step in steps) == pytest.approx(3000, abs=250)
    assert len({len(step) for step in steps}) > 5, "sampling of a fixed number of users has other accounts"
    for user in (user for step in steps for user in step):
        assert len(set(user.user.tolist())) == 1 and user.user.numel() <= 3
        first = int(sequences.offsets[int(user.user[0]) - 1]) + 1
        own = user.history[user.history != 0]
        assert bool(((own >= first) & (own < first + lengths[int(user.user[0]) - 1])).all()), "an item of another user"


@pytest.mark.parametrize("name", ["mf", "two-tower"])
def test_losses_in_which_users_meet_are_refused(name: str, cyclic: DataSet) -> None:
    with pytest.raises(UsageError, match="expected one whose loss .* sasrec, gru4rec, lstm, conv or bert4rec"):
        RECIPES[name].train(cyclic, RECIPES[name].config_type(), Run(progress=False, privacy=Privacy(8.0, 1e-3)))


def test_promises_that_cannot_be_kept_are_refused(cyclic: DataSet) -> None:
    with pytest.raises(UsageError, match="delta is 0.1 with 80 users; expected less than 0.013"):
        RECIPES["sasrec"].train(cyclic, RECIPE, Run(progress=False, privacy=Privacy(8.0, 0.1)))
    with pytest.raises(UsageError, match="epsilon of private training is 0.0"):
        Privacy(0.0)
    with pytest.raises(UsageError, match="delta of private training is 1.0"):
        Privacy(1.0, 1.0)
    with pytest.raises(UsageError, match="accumulate 2, devices 1"):
        Run(trainer=TrainerOptions(accumulate=2), privacy=Privacy(1.0))
    with pytest.raises(UsageError, match="noise must not be written down"):
        Run(trainer=TrainerOptions(resume="x"), privacy=Privacy(1.0))  # type: ignore[arg-type]
