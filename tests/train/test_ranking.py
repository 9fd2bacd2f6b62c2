"""Rankers learn their tasks, alone and together, repeatably, with ratings and without."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.errors import DataError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker import Ranker
from fuserec.train.data import DataSet
from fuserec.train.ragged import Ragged
from fuserec.train.ranking import task_options
from fuserec.train.ranking_data import RatedWindows, prefixes, split_ratings, unseen_items
from fuserec.train.recipes import RECIPES, get_recipe
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out

NAMES = ["ranker-mlp", "ranker-attention", "ranker-dcn"]
SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0, "patience": 30,
         "hidden": 16, "dropout": 0.0}  # fmt: skip


def train(name: str, dataset: DataSet, **options: Any) -> Checkpoint:
    recipe = dataclasses.replace(get_recipe(name).config_type(), **SMALL | options)
    return RECIPES[name].train(dataset, recipe, Run(progress=False))


@pytest.fixture(scope="session")
def rated(cyclic: DataSet) -> DataSet:
    """The rating follows from the item: 1 for one half of the catalogue, 9 for the other."""
    rating = pl.when(pl.col("item_id") % 2 == 0).then(1.0).otherwise(9.0).cast(pl.Float32)
    return DataSet(cyclic.interactions.with_columns(rating=rating), cyclic.items)


@pytest.mark.parametrize("name", NAMES)
def test_all_tasks_are_learned_together(name: str, rated: DataSet) -> None:
    checkpoint = train(name, rated, epochs=15)
    test = checkpoint.metrics["test"]
    assert checkpoint.architecture == name
    assert checkpoint.metrics["tasks"] == ["next-item", "click", "rating"]
    assert test["ndcg@10"] > 0.5
    assert test["auc"] > 0.9
    assert test["accuracy"] > 0.8
    assert test["log_loss"] < 0.5
    assert test["mse"] < 0.2 * test["mse_of_mean"]
    assert test["mae"] < test["mae_of_mean"]
    assert checkpoint.metrics["retrieval"]["test"]["ndcg@10"] > 0.5
    assert "target against 10 items" in checkpoint.metrics["click_protocol"]


def test_without_ratings_there_is_no_rating_task(cyclic: DataSet) -> None:
    checkpoint = train("ranker-mlp", cyclic, epochs=1)
    module = checkpoint.module()
    assert isinstance(module, Ranker)
    assert module.heads == ("click",)
    assert "mse" not in checkpoint.metrics["test"]


def test_ratings_asked_for_where_there_are_none(cyclic: DataSet) -> None:
    with pytest.raises(DataError, match="hold no rating to learn the task rating from"):
        train("ranker-mlp", cyclic, tasks="click,rating")


def test_click_alone(cyclic: DataSet) -> None:
    checkpoint = train("ranker-mlp", cyclic, epochs=15, tasks="click")
    assert checkpoint.metrics["test"]["ndcg@10"] > 0.3


def test_rating_alone_is_chosen_by_what_it_explains(rated: DataSet) -> None:
    checkpoint = train("ranker-mlp", rated, epochs=8, tasks="rating")
    test = checkpoint.metrics["test"]
    assert test["mse"] < 0.2 * test["mse_of_mean"]
    assert "auc" not in test


def test_missing_ratings_are_left_out(rated: DataSet) -> None:
    """Half of the ratings are null or NaN: the others are learned, and the weights stay finite."""
    missing = pl.int_range(pl.len()) % 4
    interactions = rated.interactions.with_columns(
        rating=pl.when(missing == 0).then(None).otherwise(pl.col("rating")).cast(pl.Float32)
    )
    checkpoint = train("ranker-mlp", DataSet(interactions, rated.items), epochs=8)
    test = checkpoint.metrics["test"]
    assert test["mse"] < 0.4 * test["mse_of_mean"]


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_weights_and_other_seeds_others(name: str, rated: DataSet) -> None:
    first, second, other = (train(name, rated, epochs=2, seed=seed) for seed in (0, 0, 1))
    assert first.metrics["test"] == second.metrics["test"]
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)
    assert any(not torch.equal(first.state[key], other.state[key]) for key in first.state)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_comes_back_from_its_folder(name: str, rated: DataSet, tmp_path: Path) -> None:
    train(name, rated, epochs=1).save(tmp_path / "checkpoint")
    module = Checkpoint.load(tmp_path / "checkpoint").module()
    assert isinstance(module, Ranker)
    assert module.heads == ("click", "rating")
    assert module.item_vectors().shape == (60, 16)
    rating = rated.interactions["rating"]
    assert float(module.rank_tower.rating_mean) == pytest.approx(rating.mean(), abs=0.5)


def test_ratings_follow_their_items(rated: DataSet) -> None:
    split = leave_one_out(rated)
    ratings = split_ratings(rated, split)
    of_item = np.where(split.item_ids % 2 == 0, 1.0, 9.0).astype(np.float32)
    np.testing.assert_array_equal(ratings.train, of_item[split.train.values - 1])
    np.testing.assert_array_equal(ratings.validation, of_item[split.validation_targets - 1])
    np.testing.assert_array_equal(ratings.test, of_item[split.test_targets - 1])
    seen = 0
    for batch in RatedWindows(split.train, ratings.train, max_history=8, batch_size=16, seed=0):
        asked = batch.target != 0
        np.testing.assert_array_equal(batch.rating[asked].numpy(), of_item[batch.target[asked].numpy() - 1])
        following = (batch.history[asked] % 60) + 1  # the cycle of the data
        np.testing.assert_array_equal(batch.target[asked].numpy(), following.numpy())
        seen += int(asked.sum())
    assert seen == int((split.train.lengths - 1).sum())


def test_prefixes_end_at_their_position() -> None:
    history = torch.tensor([[1, 2, 3], [0, 4, 5]])
    cut = prefixes(history, torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]))
    assert cut.tolist() == [[0, 0, 1], [1, 2, 3], [0, 0, 4]]


def test_unseen_items_are_repeatable_and_never_consumed(cyclic: DataSet) -> None:
    split = leave_one_out(cyclic)
    drawn = unseen_items(split, 20, seed=0)
    np.testing.assert_array_equal(drawn, unseen_items(split, 20, seed=0))
    assert drawn.shape == (split.evaluated.size, 20)
    assert 0 < (drawn == 0).mean() < 0.5
    for user, rows in zip(split.evaluated, drawn, strict=True):
        assert not np.isin(rows, split.full[user]).any()


def test_unseen_items_of_users_who_have_seen_all() -> None:
    everything = Ragged.from_rows([[1, 2, 3]])
    split = dataclasses.replace(
        leave_one_out(
            DataSet(
                pl.DataFrame({"user_id": [0, 0, 0], "item_id": [0, 1, 2], "timestamp": [0, 1, 2]}),
                pl.DataFrame({"item_id": [0, 1, 2], "title": ["a", "b", "c"]}),
            )
        ),
        full=everything,
    )
    assert not unseen_items(split, 5, seed=0).any()


def test_tasks_and_weights_of_the_command_line() -> None:
    assert task_options() == {}
    assert task_options("click") == {"tasks": "click"}
    options = task_options("next-item, rating", "1,0.25")
    assert options == {"tasks": "next-item, rating", "next_item_weight": 1.0, "rating_weight": 0.25}
    assert get_recipe("ranker-mlp").options(options).rating_weight == 0.25


@pytest.mark.parametrize(
    ("tasks", "weights", "message"),
    [
        (None, "1", "without --tasks"),
        ("click,rating", "1", "1 numbers for 2 tasks"),
        ("click", "much", "'much' for click"),
        ("click,buy", "1,1", "'buy'; expected one of next-item, click, rating"),
    ],
)
def test_tasks_and_weights_that_make_no_sense(tasks: str | None, weights: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task_options(tasks, weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "buy"}, "'buy'; expected some of next-item, click, rating"),
        ({"n_negatives": 0}, "n_negatives is 0"),
        ({"n_ranked": 0}, "n_ranked is 0"),
        ({"click_weight": 0.0}, "click_weight is 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get_recipe("ranker-mlp").options(options)
