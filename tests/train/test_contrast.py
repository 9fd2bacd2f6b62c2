"""What a two-tower compares for each kind of negatives, and the losses over it against plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from fuserec.train.contrast import LOSSES, Contrast, among_each_other, beside_candidates, contrast_loss, hardest
from fuserec.train.data import DataSet
from fuserec.train.features import build_features
from fuserec.train.losses import info_nce
from fuserec.train.negatives import KINDS
from fuserec.train.run import Run
from fuserec.train.split import Split, leave_one_out
from fuserec.train.two_tower import TwoTowerRecipe, TwoTowerTask, build_two_tower, train_two_tower
from fuserec.train.windows import WindowBatch, WindowLoader

RECIPE = TwoTowerRecipe(
    epochs=5, batch_size=16, dim=16, max_history=8, warmup_steps=5, learning_rate=1e-2, n_negatives=40, n_hard=8
)
TEMPERATURE, MARGIN = 0.2, 0.3
BATCH, EXTRA = 6, 9


def random_contrast(kind: str) -> Contrast:
    generator = torch.Generator().manual_seed(5)
    normalize = torch.nn.functional.normalize
    users = normalize(torch.randn(BATCH, 8, generator=generator).double())
    items = normalize(torch.randn(BATCH + EXTRA, 8, generator=generator).double())
    is_negative = torch.rand(BATCH, BATCH + EXTRA, generator=generator) < 0.6
    is_negative[torch.arange(BATCH), torch.arange(BATCH)] = False
    log_q = torch.rand(BATCH + EXTRA, generator=generator).double().log()
    if kind == "among":
        return among_each_other(users, items, is_negative, log_q)
    contrast = beside_candidates(users, items, is_negative, log_q)
    return hardest(contrast, 4) if kind == "hardest" else contrast


def slow(loss: str, contrast: Contrast) -> float:
    """The formulas, a number at a time."""
    log_q = contrast.log_q.expand(contrast.scores.shape)
    losses = []
    for i in range(BATCH):
        own = int(contrast.own[i])
        negatives = [j for j in range(contrast.scores.shape[1]) if contrast.is_negative[i, j]]
        score = {j: float(contrast.scores[i, j]) for j in [own, *negatives]}
        if loss == "info-nce":
            terms = {j: math.exp(score[j] / TEMPERATURE) / math.exp(log_q[i, j]) for j in score}
            losses.append(-math.log(terms[own] / sum(terms.values())))
        elif loss == "softmax":
            rest = (math.exp(score[j] / TEMPERATURE) / (contrast.n_drawn * math.exp(log_q[i, j])) for j in negatives)
            chosen = math.exp(score[own] / TEMPERATURE)
            losses.append(-math.log(chosen / (chosen + sum(rest))))
        elif loss == "bpr":
            losses += [-math.log(1 / (1 + math.exp((score[j] - score[own]) / TEMPERATURE))) for j in negatives]
        else:
            losses += [max(0.0, MARGIN - score[own] + score[j]) for j in negatives]
    return float(np.mean(losses))


@pytest.mark.parametrize("kind", ["among", "beside", "hardest"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_match_the_loops(loss: str, kind: str) -> None:
    contrast = random_contrast(kind)
    found = contrast_loss(loss, contrast, temperature=TEMPERATURE, margin=MARGIN)
    assert float(found) == pytest.approx(slow(loss, contrast), rel=1e-9)


def test_a_sampled_softmax_estimates_the_one_over_the_catalogue() -> None:
    generator = torch.Generator().manual_seed(0)
    user = torch.nn.functional.normalize(torch.randn(1, 4, generator=generator).double())
    items = torch.nn.functional.normalize(torch.randn(7, 4, generator=generator).double())
    q = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.05, 0.05]).double()
    own = torch.zeros(1, dtype=torch.int64)

    def loss(rows: torch.Tensor, log_q: torch.Tensor) -> float:
        """Item 0 was chosen; candidates are items 1 to 6."""
        vectors = items[torch.cat([own, rows])]
        negative = torch.ones(1, len(vectors), dtype=torch.bool)
        contrast = beside_candidates(user, vectors, negative, torch.cat([torch.zeros(1).double(), log_q]))
        return float(contrast_loss("softmax", contrast, temperature=TEMPERATURE, margin=0.0))

    everything = loss(torch.arange(1, 7), torch.full((6,), -math.log(6)).double())
    assert everything == pytest.approx(-float(torch.log_softmax(user @ items.T / TEMPERATURE, dim=1)[0, 0]))
    drawn = torch.multinomial(q, 200_000, replacement=True, generator=generator)
    assert loss(drawn + 1, q.log()[drawn]) == pytest.approx(everything, rel=0.01)


def test_the_hardest_are_the_negatives_that_score_highest() -> None:
    contrast, kept = random_contrast("beside"), random_contrast("hardest")
    for i in range(BATCH):
        negatives = contrast.scores[i][contrast.is_negative[i]].sort(descending=True).values
        torch.testing.assert_close(kept.scores[i][kept.is_negative[i]], negatives[:4])
        assert kept.scores[i, 0] == contrast.scores[i, 0]


def one_batch(cyclic: DataSet, **options: object) -> tuple[TwoTowerTask, WindowBatch, Split]:
    recipe = dataclasses.replace(RECIPE, **options)
    split = leave_one_out(cyclic)
    torch.manual_seed(0)
    task = TwoTowerTask(build_two_tower(recipe, split, build_features(cyclic.items)), recipe, split)
    return task.eval(), next(iter(WindowLoader(split.train, recipe.max_history, recipe.batch_size, 0))), split


@pytest.mark.parametrize("kind", KINDS)
def test_no_negative_was_consumed_and_all_else_is_one(kind: str, cyclic: DataSet) -> None:
    """A column is told by its score: every item has its own vector."""
    task, batch, split = one_batch(cyclic, negatives=kind)
    asked = batch.target != 0
    with torch.no_grad():
        contrast = task.contrast(batch)
        users = task.model.user_tower.all_positions(batch.user, batch.history)[asked]
        scores = users @ task.model.item_vectors().T
    user_of_example = batch.user[asked.nonzero()[:, 0]]
    found = 0
    for i, user in enumerate(user_of_example.tolist()):
        item = (contrast.scores[i][:, None] - scores[i][None, :]).abs().argmin(dim=1) + 1
        assert int(item[contrast.own[i]]) == int(batch.target[asked][i])
        consumed = set(split.train[user - 1].tolist())
        is_new = torch.tensor([row not in consumed for row in item.tolist()])
        assert contrast.is_negative[i].tolist() == is_new.tolist()
        found += int(is_new.sum())
    assert found > 0


def test_the_default_is_info_nce_in_the_batch_with_log_q(cyclic: DataSet) -> None:
    task, batch, split = one_batch(cyclic)
    asked = batch.target != 0
    with torch.no_grad():
        users = task.model.user_tower.all_positions(batch.user, batch.history)[asked]
        rows, window = batch.target[asked], asked.nonzero()[:, 0]
        consumed = [set(split.train[int(user) - 1].tolist()) for user in batch.user]
        mark = torch.tensor([[row in consumed[w] for row in rows.tolist()] for w in window.tolist()])
        items = task.model.encode_items(rows)
        expected = info_nce(users, items, task.log_q[rows], rows, RECIPE.temperature, not_negative=mark)
        torch.testing.assert_close(task(batch), expected)


def test_rare_items_weigh_more_with_long_tail(cyclic: DataSet) -> None:
    """Weights of all ones change nothing; with one item's weight raised, the loss moves towards that item's."""
    task, batch, _ = one_batch(cyclic, long_tail=1.0)
    plain, _, _ = one_batch(cyclic)
    with torch.no_grad():
        task.weights.fill_(1.0)
        torch.testing.assert_close(task(batch), plain(batch))
        task.weights[int(batch.target[batch.target != 0][0])] = 5.0
        assert float(task(batch)) > float(plain(batch))


COMBINATIONS = [pair for pair in itertools.product(LOSSES, KINDS) if pair != ("softmax", "hard")]


@pytest.mark.parametrize(("loss", "negatives"), COMBINATIONS)
def test_every_loss_falls_with_every_kind_of_negatives(loss: str, negatives: str, cyclic: DataSet) -> None:
    task, batch, _ = one_batch(cyclic, loss=loss, negatives=negatives)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        value = task(batch)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < 0.9 * losses[0]


@pytest.mark.parametrize(("loss", "negatives"), [("softmax", "catalogue"), ("bpr", "popularity"), ("margin", "hard")])
def test_other_losses_learn_the_rule(loss: str, negatives: str, cyclic: DataSet) -> None:
    recipe = dataclasses.replace(RECIPE, loss=loss, negatives=negatives)
    assert train_two_tower(cyclic, recipe, Run(progress=False)).metrics["test"]["ndcg@10"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; expected one of info-nce, softmax, bpr, margin"),
        ({"negatives": "easy"}, "negatives is 'easy'; expected one of in-batch"),
        ({"loss": "softmax", "negatives": "hard"}, "negatives that estimate the catalogue"),
        ({"n_negatives": 0}, "n_negatives is 0"),
        ({"n_hard": 0}, "n_hard is 0"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"long_tail": 1.5}, "long_tail is 1.5; expected 0 <= long_tail <= 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RECIPE, **options)
