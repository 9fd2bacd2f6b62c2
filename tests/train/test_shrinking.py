"""A smaller checkpoint is told about in full, and fine-tuning learns from nothing that is held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from fuserec.errors import CheckpointError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.pruning import masked_units, pairs
from fuserec.train.data import DataSet
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run
from fuserec.train.shrinking import make_smaller, own_data
from fuserec.train.split import leave_one_out
from tests.conftest import write_encoder

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0, "dropout": 0.0}
SMALL |= {"patience": 30}


def train(name: str, dataset: DataSet, **options: Any) -> Checkpoint:
    recipe = RECIPES[name].options(SMALL | options)
    return RECIPES[name].train(dataset, recipe, Run(progress=False))


@pytest.fixture(scope="module")
def sasrec(cyclic: DataSet) -> Checkpoint:
    return train("sasrec", cyclic, epochs=6, n_blocks=2)


@pytest.fixture(scope="module")
def rated(cyclic: DataSet) -> DataSet:
    rating = pl.when(pl.col("item_id") % 2 == 0).then(1.0).otherwise(9.0).cast(pl.Float32)
    return DataSet(cyclic.interactions.with_columns(rating=rating), cyclic.items)


@pytest.fixture(scope="module")
def ranker(rated: DataSet) -> Checkpoint:
    return train("ranker-mlp", rated, epochs=1, n_blocks=2, hidden=16)


def smaller(checkpoint: Checkpoint, **options: Any) -> Checkpoint:
    return make_smaller(checkpoint, progress=False, **options)


def ndcg(scores: dict[str, Any]) -> float:
    return float(scores["validation"]["ndcg@10"])


def test_stored_histories_are_split_as_the_data_were(sasrec: Checkpoint, cyclic: DataSet) -> None:
    dataset = own_data(sasrec)
    assert dataset is not None
    ours, theirs = leave_one_out(dataset), leave_one_out(cyclic)
    for name in ("user_ids", "item_ids", "evaluated", "validation_targets", "test_targets"):
        assert (getattr(ours, name) == getattr(theirs, name)).all(), name
    assert (ours.train.values == theirs.train.values).all()
    assert (ours.full.values == theirs.full.values).all()


def test_pruned_and_shallow_and_tuned(sasrec: Checkpoint) -> None:
    made = smaller(sasrec, prune=0.5, drop_layers=1, epochs=4)
    assert made.arguments == sasrec.arguments | {"n_blocks": 1}
    [(_, inner, outer)] = pairs(made.module())
    assert int(masked_units(inner, outer).sum()) == 16
    told = made.metrics["shrunk"]
    assert (told["prune"], told["dropped_layers"], told["epochs"], told["fine_tuned"]) == (0.5, 1, 4, True)
    assert told["before"] == {part: sasrec.metrics[part] for part in ("validation", "test")}
    assert told["after"] == {part: made.metrics[part] for part in ("validation", "test")}
    assert ndcg(told["after"]) > ndcg(told["untuned"])
    # One block of four 16 x 16 attention layers, 8 distances of 2 heads, two norms and an MLP; 16 units of the other.
    block = 4 * (16 * 16 + 16) + 8 * 2 + 2 * 2 * 16 + (16 * 32 + 32 + 32 * 16 + 16)
    parameters = told["parameters"]
    assert parameters["before"] - parameters["after"] == block + 16 * (16 + 1 + 16)
    recipe = made.metrics["recipe"]
    assert (recipe["n_blocks"], recipe["prune"], recipe["prune_epoch"], recipe["epochs"]) == (1, 0.5, 1, 4)


def test_the_same_seed_gives_the_same_checkpoint(sasrec: Checkpoint) -> None:
    one, other = (smaller(sasrec, prune=0.5, epochs=1, seed=3) for _ in range(2))
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


def test_without_fine_tuning_weights_are_only_taken_out(sasrec: Checkpoint, tmp_path: Path) -> None:
    made = smaller(sasrec, prune=0.25, epochs=0)
    differing = {name for name in made.state if not torch.equal(made.state[name], sasrec.state[name])}
    assert differing and all(".mlp." in name for name in differing)
    assert made.metrics["shrunk"]["after"] == made.metrics["shrunk"]["untuned"]
    assert made.metrics["test"] == made.metrics["shrunk"]["after"]["test"] != sasrec.metrics["test"]
    made.save(tmp_path / "smaller")
    assert Checkpoint.load(tmp_path / "smaller").metrics == made.metrics


def test_what_was_pruned_stays_pruned_when_layers_are_dropped(sasrec: Checkpoint) -> None:
    pruned = smaller(sasrec, prune=0.5, epochs=0)
    made = smaller(pruned, drop_layers=1, epochs=1)
    [(_, inner, outer)] = pairs(made.module())
    assert int(masked_units(inner, outer).sum()) == 16


def test_tuning_that_only_harms_is_not_kept(sasrec: Checkpoint) -> None:
    reckless = dataclasses.replace(
        sasrec, metrics=sasrec.metrics | {"recipe": sasrec.metrics["recipe"] | {"learning_rate": 10.0}}
    )
    told = smaller(reckless, prune=0.25, epochs=1).metrics["shrunk"]
    assert told["after"] == told["untuned"] and told["fine_tuned"] is False


def test_fine_tuning_does_not_see_the_test_items(sasrec: Checkpoint) -> None:
    """With another last item of every user the weights become the same, and score otherwise."""
    history = pl.col("history")
    without_last = history.list.head(history.list.len() - 1)
    users = sasrec.users.with_columns(history=without_last.list.concat(history.list.first()))
    one, other = (
        smaller(checkpoint, prune=0.5, epochs=2) for checkpoint in (sasrec, dataclasses.replace(sasrec, users=users))
    )
    assert ndcg(one.metrics["shrunk"]["after"]) > ndcg(one.metrics["shrunk"]["untuned"]), "nothing was learned"
    assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    assert one.metrics["validation"] == other.metrics["validation"]
    assert one.metrics["test"] != other.metrics["test"]


def test_a_text_model_is_tuned_on_the_tokens_it_stores(cyclic: DataSet, tmp_path: Path) -> None:
    write_encoder(tmp_path / "encoder", cyclic.items["title"].to_list())
    options = {"encoder": str(tmp_path / "encoder"), "max_tokens": 8, "tuning": "adapter", "tuning_epochs": 1}
    whole = train("text", cyclic, epochs=1, bfloat16=False, adapter=4, tuning_batch_size=16, **options)
    made = smaller(whole, drop_layers=1, epochs=1)
    told = made.metrics["shrunk"]
    assert (told["dropped_layers"], told["epochs"]) == (1, 1)
    assert told["parameters"]["after"] < told["parameters"]["before"]
    assert made.tokenizer == whole.tokenizer
    assert torch.equal(made.state["tokens"], whole.state["tokens"])


def test_a_ranker_of_ratings_needs_the_data(
    ranker: Checkpoint, rated: DataSet, cyclic: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="ranker-mlp learns ratings, which no checkpoint holds; give --data DIR"):
        smaller(ranker, drop_layers=1, epochs=1)
    for name, interactions in {"data": rated.interactions, "newer": rated.interactions[1:]}.items():
        (tmp_path / name).mkdir()
        interactions.write_parquet(tmp_path / name / "interactions.parquet")
        rated.items.write_parquet(tmp_path / name / "items.parquet")
    made = smaller(ranker, drop_layers=1, epochs=1, data=tmp_path / "data")
    assert made.arguments["n_blocks"] == 1
    assert made.metrics["test"]["ndcg@10"] == made.metrics["shrunk"]["after"]["test"]["ndcg@10"]
    with pytest.raises(UsageError, match="newer does not hold the items and histories that the checkpoint was trained"):
        smaller(ranker, drop_layers=1, epochs=1, data=tmp_path / "newer")


def test_a_ranker_can_be_left_untuned(ranker: Checkpoint) -> None:
    made = smaller(ranker, drop_layers=1, epochs=0)
    assert made.metrics["test"] == made.metrics["shrunk"]["untuned"]["test"]
    assert "retrieval" not in made.metrics


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"recipe": None}, "recipe is None; expected the options of sasrec.*; give --fine-tune-epochs 0"),
        (
            {"recipe_name": "dialogue"},
            "dialogue learns from conversations, which no checkpoint holds; give",
        ),
        ({"privacy": {"epsilon": 1.0}}, "trained privately, which fine-tuning would undo; give --fine-tune-epochs 0"),
    ],
)
def test_what_cannot_be_tuned_can_be_left_untuned(metrics: dict[str, Any], message: str, sasrec: Checkpoint) -> None:
    other = dataclasses.replace(sasrec, metrics=sasrec.metrics | metrics)
    with pytest.raises((UsageError, CheckpointError), match=message):
        smaller(other, drop_layers=1)
    assert smaller(other, drop_layers=1, epochs=0).arguments["n_blocks"] == 1


def test_a_checkpoint_without_histories(sasrec: Checkpoint) -> None:
    nobody = dataclasses.replace(sasrec, users=sasrec.users.clear())
    with pytest.raises(UsageError, match="holds no histories to fine-tune on; give --fine-tune-epochs 0"):
        smaller(nobody, drop_layers=1)
    made = smaller(nobody, drop_layers=1, epochs=0)
    assert made.metrics["shrunk"]["after"] == {}
    assert "test" not in made.metrics


def test_a_cross_encoder_is_only_made_shallower(untrained: Callable[[str, Path], None], tmp_path: Path) -> None:
    untrained("ranker-text", tmp_path)
    whole = Checkpoint.load(tmp_path)
    with pytest.raises(UsageError, match="ranker-text can only be trained anew"):
        smaller(whole, drop_layers=1)
    made = smaller(whole, drop_layers=1, epochs=0)
    assert made.metrics["shrunk"]["dropped_layers"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither units to prune nor layers to drop came"),
        ({"prune": 1.0}, "prune is 1.0; expected 0 <= prune < 1"),
        ({"prune": -0.5}, "prune is -0.5; expected 0 <= prune < 1"),
        ({"drop_layers": 1, "epochs": -1}, "fine-tune-epochs is -1; expected at least 0"),
        ({"drop_layers": 2}, "has 2 layers; expected 1 to 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, sasrec: Checkpoint) -> None:
    with pytest.raises(UsageError, match=message):
        smaller(sasrec, **options)


def test_what_has_no_units_cannot_be_pruned(cyclic: DataSet) -> None:
    gru = train("gru4rec", cyclic, epochs=1)
    with pytest.raises(UsageError, match="this gru4rec has no two linear layers in a row; expected prune=0"):
        smaller(gru, prune=0.5)
