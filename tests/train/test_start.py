"""Training goes on from a checkpoint: what is known stays, what is new is learned, and nothing gets worse unseen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import DataSet
from fuserec.train.recipes import RECIPES, get_recipe
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out
from fuserec.train.start import Start, continue_data, plant, read_since

SMALL = {"dim": 16, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0, "dropout": 0.0}
QUIET = Run(progress=False)


@pytest.fixture(scope="module")
def trained(cyclic: DataSet) -> Checkpoint:
    recipe = get_recipe("gru4rec").config_type(**SMALL, epochs=8)
    return RECIPES["gru4rec"].train(cyclic, recipe, QUIET)


def interactions(*rows: tuple[int, int, int], rating: float | None = None) -> pl.DataFrame:
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "timestamp": pl.Int64}
    table = pl.DataFrame(list(rows), schema=schema, orient="row")
    return table if rating is None else table.with_columns(rating=pl.lit(rating, dtype=pl.Float32))


def catalogue(*item_ids: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": item_ids, "title": [f"new {i}" for i in item_ids], "genres": [["a"]] * len(item_ids), "year": 2020},
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32, "item_id": pl.Int64},
    )


def history(dataset: DataSet, user_id: int) -> list[int]:
    of_user = dataset.interactions.filter(user_id=user_id).sort("timestamp", maintain_order=True)
    return of_user["item_id"].to_list()


def stored(checkpoint: Checkpoint, user_id: int) -> list[int]:
    return checkpoint.users.filter(user_id=user_id)["history"][0].to_list()


def test_new_interactions_follow_the_stored_histories(trained: Checkpoint) -> None:
    # Out of order in the file, one interaction only of a new user, a new item, an old item that is not listed again.
    fresh = interactions((5, 3, 900), (5, 181, 800), (777, 0, 850), rating=4.0)
    joined = continue_data(trained, fresh, catalogue(181))
    assert history(joined, 5) == [*stored(trained, 5), 181, 3]
    assert history(joined, 10) == stored(trained, 10)
    assert history(joined, 777) == [0]
    assert joined.items["item_id"].to_list() == [*trained.items["item_id"], 181]
    assert joined.items.filter(item_id=3)["title"][0] == "Part 1 of the story"
    ratings = joined.interactions["rating"]
    assert ratings.drop_nulls().to_list() == [4.0] * 3 and ratings.null_count() == joined.interactions.height - 3


def test_a_user_told_from_the_beginning_is_not_told_twice(trained: Checkpoint) -> None:
    whole = [*stored(trained, 5), 3]
    part = stored(trained, 10)[1:]
    rows = [(5, item, time) for time, item in enumerate(whole)] + [(10, item, time) for time, item in enumerate(part)]
    joined = continue_data(trained, interactions(*rows), catalogue(0))
    assert history(joined, 5) == whole
    assert history(joined, 10) == [*stored(trained, 10), *part]


def test_an_item_that_nobody_described_is_an_error(trained: Checkpoint) -> None:
    with pytest.raises(DataError, match="1 item_ids that items lacks, such as 1;"):
        continue_data(trained, interactions((5, 1, 900)), catalogue(0))


def test_a_folder_of_one_interaction_can_be_continued_on(trained: Checkpoint, tmp_path: Path) -> None:
    interactions((5, 181, 900)).write_parquet(tmp_path / "interactions.parquet")
    catalogue(181).write_parquet(tmp_path / "items.parquet")
    assert history(read_since(trained, tmp_path), 5)[-1] == 181


def plant_into(checkpoint: Checkpoint, dataset: DataSet, *, keep_ids: bool) -> tuple[Any, Any]:
    """Return a fresh model's state before and after the checkpoint's weights were put into it."""
    start = Start(checkpoint, keep_ids=keep_ids)
    split = leave_one_out(dataset)
    config = dataclasses.replace(checkpoint.module().config, n_items=split.item_ids.size)  # type: ignore[type-var, arg-type]
    torch.manual_seed(1)
    model: Any = type(checkpoint.module())(config)  # type: ignore[call-arg]
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plant(start, checkpoint.architecture, model, dataset, split)
    return fresh, model.state_dict()


@pytest.mark.parametrize("keep_ids", [True, False], ids=["continue", "transfer"])
def test_rows_move_with_their_ids_or_not_at_all(trained: Checkpoint, keep_ids: bool) -> None:
    # Item 1 is new and sorts between items 0 and 3: every later row moves by one.
    joined = continue_data(trained, interactions((5, 1, 900)), catalogue(1))
    fresh, planted = plant_into(trained, joined, keep_ids=keep_ids)
    table = "user_tower.item_embedding.weight"
    new, old = planted[table], trained.state[table]
    if keep_ids:
        assert torch.equal(new[0:2], old[0:2]) and torch.equal(new[3:], old[2:])
    else:
        assert torch.equal(new[1:], fresh[table][1:])
    assert torch.equal(new[2], fresh[table][2])
    assert torch.equal(new[0], old[0])
    for name in trained.state.keys() - {table}:
        assert torch.equal(planted[name], trained.state[name])


def test_continuing_starts_from_what_was_learned_and_reports_it(trained: Checkpoint, cyclic: DataSet) -> None:
    start = Start(trained, keep_ids=True)
    assert start.recipe_name() == "gru4rec"
    options = start.options(RECIPES["gru4rec"].config_type)
    assert options == trained.metrics["recipe"]
    recipe = RECIPES["gru4rec"].options(options | {"epochs": 1})
    joined = continue_data(trained, interactions((5, stored(trained, 5)[-1], 9999)), catalogue(181))
    continued = RECIPES["gru4rec"].train(joined, recipe, dataclasses.replace(QUIET, start=start))
    before = continued.metrics["continued"]["before"]["validation"]["ndcg@10"]
    alone = RECIPES["gru4rec"].train(joined, recipe, QUIET).metrics["validation"]["ndcg@10"]
    assert continued.metrics["validation"]["ndcg@10"] >= before > alone + 0.1
    assert continued.arguments["n_items"] == 61


def test_training_that_only_harms_is_not_kept(trained: Checkpoint, cyclic: DataSet) -> None:
    harmful = RECIPES["gru4rec"].options({**SMALL, "learning_rate": 10.0, "epochs": 1})
    start = Start(trained, keep_ids=True)
    kept = RECIPES["gru4rec"].train(cyclic, harmful, dataclasses.replace(QUIET, start=start))
    assert kept.metrics["best_epoch"] == 0
    assert kept.metrics["validation"] == trained.metrics["validation"]
    assert kept.metrics["test"] == trained.metrics["test"]
    assert all(torch.equal(kept.state[name], tensor) for name, tensor in trained.state.items())


def test_a_transfer_takes_the_sizes_and_nothing_else(trained: Checkpoint) -> None:
    options = Start(trained, keep_ids=False).options(RECIPES["gru4rec"].config_type)
    assert options == {"dim": 16, "max_history": 8, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sasrec", {}, "is a gru4rec; expected a sasrec"),
        ("gru4rec", {"dim": 8}, r"is \(61, 16\) in the checkpoint and \(61, 8\) with these options"),
        ("gru4rec", {"n_blocks": 2}, "only the model of these options has a tensor .*l1"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    name: str, options: dict[str, Any], message: str, trained: Checkpoint, cyclic: DataSet
) -> None:
    recipe = get_recipe(name).config_type(**SMALL | options)
    with pytest.raises(UsageError, match=message):
        RECIPES[name].train(cyclic, recipe, dataclasses.replace(QUIET, start=Start(trained, keep_ids=True)))


def test_a_checkpoint_that_does_not_say_how_it_was_trained_cannot_be_continued(trained: Checkpoint) -> None:
    silent = dataclasses.replace(trained, metrics={})
    with pytest.raises(CheckpointError, match="recipe is None; expected the options of gru4rec"):
        Start(silent, keep_ids=True).options(RECIPES["gru4rec"].config_type)
