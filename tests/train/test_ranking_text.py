"""The cross-encoder recipe learns from texts what users like, repeatably, into a checkpoint that loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.errors import DataError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker_text import TextRanker
from fuserec.train.data import DataSet
from fuserec.train.ranking_data import split_ratings
from fuserec.train.ranking_text import TextRankerRecipe, train_text_ranker
from fuserec.train.ranking_text_data import PositionSampler, sample_users
from fuserec.train.ranking_text_metrics import popularity_metrics
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out
from tests.train.pretrained_folder import write_pretrained

N_ITEMS, N_USERS, CONSUMED = 80, 48, 12
COLOURS = ["red", "green", "blue", "black"]


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    """Users like things of one colour, above all new ones: the rating is 5 for new and 1 for old."""
    generator = np.random.default_rng(0)
    rows = np.stack([generator.permutation(N_ITEMS // 4)[:CONSUMED] * 4 + user % 4 for user in range(N_USERS)])
    interactions = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(N_USERS), CONSUMED),
            "item_id": 10 + 3 * rows.reshape(-1),
            "timestamp": np.tile(np.arange(CONSUMED), N_USERS),
            "rating": np.where(rows.reshape(-1) % 8 < 4, 5.0, 1.0),
        },
        schema_overrides={"rating": pl.Float32},
    )
    items = pl.DataFrame(
        {
            "item_id": 10 + 3 * np.arange(N_ITEMS),
            "title": [f"{'new' if row % 8 < 4 else 'old'} {COLOURS[row % 4]} thing" for row in range(N_ITEMS)],
            "genres": [[]] * N_ITEMS,
            "year": [None] * N_ITEMS,
        },
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
    )
    return DataSet(interactions, items)


@pytest.fixture(scope="module")
def encoder(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    write_pretrained(folder, dataset.items["title"].to_list())
    return folder


def small(encoder: Path, **options: Any) -> TextRankerRecipe:
    sizes = {"max_history": 3, "max_tokens": 5, "n_layers": 1, "epochs": 1, "steps": 3, "warmup_steps": 5}
    defaults = {"batch_size": 16, "learning_rate": 5e-3, "n_evaluated": 24, "lora_rank": 0, "dropout": 0.0}
    return TextRankerRecipe(**{"encoder": str(encoder), **sizes, **defaults, **options})


def test_what_users_like_and_how_they_rate_it_is_learned(dataset: DataSet, encoder: Path, tmp_path: Path) -> None:
    recipe = small(encoder, epochs=3, steps=80, patience=3, rating_weight=0.5)
    checkpoint = train_text_ranker(dataset, recipe, Run(progress=False))
    test = checkpoint.metrics["test"]
    # The colour is all there is to know: a quarter of the unseen items are of it, too.
    assert test["auc"] > 0.8
    assert test["mse"] < 0.25 * test["mse_of_mean"]
    assert test["hr@10"] > checkpoint.metrics["baselines"]["popularity"]["hr@10"]
    checkpoint.save(tmp_path / "checkpoint")
    module = Checkpoint.load(tmp_path / "checkpoint").module()
    assert isinstance(module, TextRanker) and module.heads == ("click", "rating")
    with torch.no_grad():
        # Row 1 is a new red thing, row 2 a new green one, row 5 an old red one; this user had red things.
        said = module.rank_tower(torch.tensor([0]), torch.tensor([[9, 13]]), torch.tensor([[1, 2, 5]]))[0]
    assert said[0, 0] > said[1, 0]
    assert said[0, 1] > said[2, 1] + 2


def test_equal_seeds_give_equal_weights(dataset: DataSet, encoder: Path) -> None:
    first, second, other = (
        train_text_ranker(dataset, small(encoder, seed=seed, lora_rank=2), Run(progress=False)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
    assert first.metrics["test"] == second.metrics["test"]
    assert any(not torch.equal(first.state[name], other.state[name]) for name in first.state)
    assert 0 < first.metrics["tuned_parameters"] < first.metrics["parameters"]


@pytest.mark.parametrize(("tasks", "there", "missing"), [("click", "auc", "mse"), ("rating", "mse", "auc")])
def test_one_task_alone(tasks: str, there: str, missing: str, dataset: DataSet, encoder: Path) -> None:
    checkpoint = train_text_ranker(dataset, small(encoder, tasks=tasks), Run(progress=False))
    assert checkpoint.metrics["tasks"] == [tasks]
    assert there in checkpoint.metrics["test"] and missing not in checkpoint.metrics["test"]


def test_ratings_that_are_not_there(dataset: DataSet, encoder: Path) -> None:
    without = dataclasses.replace(dataset, interactions=dataset.interactions.drop("rating"))
    assert train_text_ranker(without, small(encoder), Run(progress=False)).metrics["tasks"] == ["click"]
    with pytest.raises(DataError, match="no rating to learn"):
        train_text_ranker(without, small(encoder, tasks="click,rating"), Run(progress=False))


def test_what_is_drawn_follows_what_is_before_it_and_negatives_are_none_of_the_users(dataset: DataSet) -> None:
    split = leave_one_out(dataset)
    sampler = PositionSampler(split, split_ratings(dataset, split), max_history=3, n_negatives=6)
    sequences = [split.train[user].tolist() for user in range(N_USERS)]
    for batch in sampler.batches(steps=4, batch_size=8, seed=0):
        for history, candidates, rating in zip(*(part.tolist() for part in batch), strict=True):
            past = [row for row in history if row]
            target, *negatives = candidates
            owners = [rows for rows in sequences if [*past, target] == rows[: len(past) + 1] or len(past) == 3]
            owners = [rows for rows in owners if str([*past, target])[1:-1] in str(rows)]
            assert owners, f"nobody had {past} and then {target}"
            assert any(not set(negatives) & set(rows) for rows in owners)
            assert rating == (5.0 if (target - 1) % 8 < 4 else 1.0)


def test_the_popular_items_are_unseen_and_in_order(dataset: DataSet) -> None:
    split = leave_one_out(dataset)
    _, users = sample_users(split, split_ratings(dataset, split), max_history=3, count=N_USERS)
    counts = np.bincount(split.train.values, minlength=N_ITEMS + 1)
    for popular, history, target in zip(users.popular, users.histories, users.targets, strict=True):
        shown = popular[popular > 0]
        assert not set(shown) & set(history) and (np.diff(counts[shown]) <= 0).all()
        assert target in shown or counts[target] <= counts[shown].min()
    scores = popularity_metrics(users)
    assert 0 < scores["ndcg@10"] <= scores["hr@10"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 7}, "n_layers is 7; expected at most 2"),
        ({"max_history": 20}, "expected at most 32, what the encoder reads"),
    ],
)
def test_options_that_do_not_fit_the_encoder_are_refused(
    options: dict[str, Any], message: str, dataset: DataSet, encoder: Path
) -> None:
    with pytest.raises(DataError, match=message):
        train_text_ranker(dataset, small(encoder, **options), Run(progress=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "next-item"}, "tasks is 'next-item'"),
        ({"steps": 0}, "steps is 0"),
        ({"rating_weight": 0.0}, "rating_weight is 0.0"),
        ({"max_tokens": 1}, "max_tokens is 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRankerRecipe(**options)
