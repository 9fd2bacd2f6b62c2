"""Every recipe of a retriever learns a rule, repeatably, into a checkpoint that loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.train.data import DataSet
from fuserec.train.recipes import RECIPES, get_recipe
from fuserec.train.run import Run

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0, "patience": 30}
SEQUENTIAL = ["sasrec", "gru4rec", "lstm", "conv", "bert4rec"]


def small(name: str, **options: Any) -> Any:
    return dataclasses.replace(get_recipe(name).config_type(), **SMALL | options)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential_recipes_learn_what_follows_what(name: str, cyclic: DataSet) -> None:
    checkpoint = RECIPES[name].train(cyclic, small(name, epochs=25, dropout=0.0), Run(progress=False))
    assert checkpoint.architecture == name
    assert checkpoint.metrics["test"]["ndcg@10"] > 0.5


def test_matrix_factorization_learns_what_a_user_likes() -> None:
    """Users like one half of the items or the other; what they have not seen of their half is found."""
    import numpy as np
    import polars as pl

    generator = np.random.default_rng(0)
    items = np.stack([generator.permutation(30)[:20] + 30 * (user % 2) for user in range(60)])
    interactions = pl.DataFrame(
        {"user_id": np.repeat(np.arange(60), 20), "item_id": items.reshape(-1), "timestamp": np.tile(np.arange(20), 60)}
    )
    catalogue = pl.DataFrame(
        {"item_id": np.arange(60), "title": [f"item {i}" for i in range(60)], "genres": [[]] * 60, "year": [None] * 60},
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32},
    )
    recipe = small("mf", epochs=40, batch_size=128)
    checkpoint = RECIPES["mf"].train(DataSet(interactions, catalogue), recipe, Run(progress=False))
    # 12 items of their half are left to be recommended, the target one of them.
    assert checkpoint.metrics["test"]["hr@10"] > 0.7


@pytest.mark.parametrize("name", ["mf", *SEQUENTIAL])
def test_equal_seeds_give_equal_weights_and_other_seeds_others(name: str, cyclic: DataSet) -> None:
    first, second, other = (
        RECIPES[name].train(cyclic, small(name, epochs=2, seed=seed), Run(progress=False)) for seed in (0, 0, 1)
    )
    assert first.metrics["test"] == second.metrics["test"]
    assert all(torch.equal(first.state[key], second.state[key]) for key in first.state)
    assert any(not torch.equal(first.state[key], other.state[key]) for key in first.state)


@pytest.mark.parametrize("name", ["mf", *SEQUENTIAL])
def test_a_checkpoint_comes_back_from_its_folder(name: str, cyclic: DataSet, tmp_path: Path) -> None:
    checkpoint = RECIPES[name].train(cyclic, small(name, epochs=1), Run(progress=False))
    checkpoint.save(tmp_path / "checkpoint")
    module = Checkpoint.load(tmp_path / "checkpoint").module()
    assert isinstance(module, Retriever)
    assert module.item_vectors().shape == (60, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mf", {"n_negatives": 0}, "n_negatives is 0"),
        ("mf", {"l2": -1.0}, "l2 is -1.0"),
        ("sasrec", {"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ("sasrec", {"n_heads": 3}, "multiple of n_heads"),
        ("bert4rec", {"mask_probability": 0.0}, "mask_probability is 0.0"),
        ("gru4rec", {"epochs": 0}, "epochs is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name, **options)
