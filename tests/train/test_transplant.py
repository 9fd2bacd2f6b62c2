"""Entries of a table move with what they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.entries import Computed
from fuserec.models.registry import ARCHITECTURES, build_module
from fuserec.models.retriever import Retriever
from fuserec.train.data import DataSet
from fuserec.train.features import year_edges
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run
from fuserec.train.transplant import Origins, origins, transplant

GROWN = {"n_items": 11, "n_users": 7, "n_genres": 3, "n_words": 5, "n_years": 2}
TABLES = {
    "items": ["user_tower.item_embedding.weight"],
    "users": ["user_tower.user_embedding.weight"],
    "words": ["item_tower.word.weight"],
    "years": ["item_tower.year.weight"],
    "genres": ["item_tower.genre.weight"],
}


def catalogue(titles: list[str], genres: list[list[str]], years: list[int], first_id: int = 0) -> pl.DataFrame:
    return pl.DataFrame(
        {"item_id": np.arange(len(titles)) + first_id, "title": titles, "genres": genres, "year": years},
        schema_overrides={"genres": pl.List(pl.String), "year": pl.Int32, "item_id": pl.Int64},
    )


OLD = catalogue(
    ["red moon", "red sun", "blue moon", "blue sun"], [["x"], ["z"], ["x"], ["z"]], [1990, 1991, 1992, 1993]
)
NEW = catalogue(["green sun", "red sun", "green red"], [["y"], ["z"], ["x"]], [1991, 1993, 2010], first_id=2)


def train(items: pl.DataFrame, users: list[int]) -> Checkpoint:
    rows = [(user, item, time) for user in users for time, item in enumerate([*items["item_id"], items["item_id"][0]])]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    recipe = RECIPES["two-tower"].options({"dim": 4, "epochs": 1, "max_history": 4})
    return RECIPES["two-tower"].train(DataSet(interactions, items), recipe, Run(progress=False))


def test_words_genres_years_items_and_users_find_their_rows() -> None:
    old, new = train(OLD, users=[1, 4]), train(NEW, users=[2, 4])
    model: Any = new.module()
    known = origins(old, new.items, new.users["user_id"].to_numpy(), keep_ids=True)
    transplant(model, old.state, known)

    def moved(kind: str, old_index: int | None, new_index: int, axis: int = 0) -> bool:
        name = TABLES[kind][0]
        source = new.state[name] if old_index is None else old.state[name]
        index = new_index if old_index is None else old_index
        return torch.equal(model.state_dict()[name].select(axis, new_index), source.select(axis, index))

    # Words in two titles or more: of old blue, moon, red, sun; of new green, red, sun. Row 0 is "no word".
    assert moved("words", 0, 0) and moved("words", None, 1) and moved("words", 3, 2) and moved("words", 4, 3)
    assert moved("genres", 0, 0, axis=1) and moved("genres", None, 1, axis=1) and moved("genres", 1, 2, axis=1)
    assert moved("users", 0, 0) and moved("users", None, 1) and moved("users", 2, 2)
    # Items 2 and 3 are the last two of old and the first two of new; 4 is new.
    assert moved("items", 3, 1) and moved("items", 4, 2) and moved("items", None, 3)
    assert moved("years", 0, 0) and moved("years", old.arguments["n_years"], new.arguments["n_years"])
    assert torch.equal(model.item_features.words, new.state["item_features.words"])
    assert torch.equal(model.user_tower.head[0].weight, old.state["user_tower.head.0.weight"])


def test_equal_numbers_in_another_catalogue_mean_nothing() -> None:
    old, new = train(OLD, users=[1, 4]), train(NEW, users=[2, 4])
    model: Any = new.module()
    transplant(model, old.state, origins(old, new.items, new.users["user_id"].to_numpy(), keep_ids=False))
    for name in (*TABLES["items"], *TABLES["users"]):
        assert torch.equal(model.state_dict()[name][1:], new.state[name][1:])
    assert torch.equal(model.item_tower.word.weight[2], old.state["item_tower.word.weight"][3])


def test_the_mask_stays_behind_the_items(cyclic: DataSet) -> None:
    recipe = RECIPES["bert4rec"].options({"dim": 8, "max_history": 4, "epochs": 1, "n_heads": 1})
    old = RECIPES["bert4rec"].train(cyclic, recipe, Run(progress=False))
    model: Any = type(old.module())(dataclasses.replace(old.module().config, n_items=70))  # type: ignore[call-arg, type-var]
    known = {"items": Origins(np.concatenate([np.arange(60), np.full(10, -1)]), n_before=60)}
    transplant(model, old.state, known)  # type: ignore[arg-type]
    table = model.user_tower.item_embedding.weight
    before = old.state["user_tower.item_embedding.weight"]
    assert torch.equal(table[71], before[61])
    assert torch.equal(table[:61], before[:61])
    assert not torch.equal(table[61], before[61])


def test_a_year_bucket_finds_the_one_that_lies_where_it_lies() -> None:
    years = pl.Series([1950, 1960, 1970, 1980, 1990, 2000])
    same = Origins.by_span(year_edges(years), year_edges(years))
    assert same.index.tolist() == list(range(same.n_before))
    later = Origins.by_span(year_edges(years + 100), year_edges(years))
    assert set(later.index) == {later.n_before - 1}
    assert Origins.by_span(year_edges(years), year_edges(pl.Series([], dtype=pl.Int32))).index.max() == -1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_declare_every_tensor_that_grows_with_a_vocabulary(
    name: str, untrained: Callable[[str, Path], None], tmp_path: Path
) -> None:
    """A model over larger vocabularies differs in the declared tensors, along the declared axis, and nowhere else."""
    untrained(name, tmp_path / name)
    arguments = Checkpoint.load(tmp_path / name).arguments
    names = {field.name for field in dataclasses.fields(ARCHITECTURES[name].config_type)}
    sizes = {size: value for size, value in GROWN.items() if size in names}
    small = build_module(name, arguments | sizes)
    large = build_module(name, arguments | {size: value + 3 for size, value in sizes.items()}).state_dict()
    if not isinstance(small, Retriever):
        pytest.skip(f"{name} is no retriever")
    before: dict[str, Tensor] = small.state_dict()
    grown = {key for key, tensor in large.items() if tensor.shape != before[key].shape}
    assert grown == set(small.entries)
    for key, entries in small.entries.items():
        if not isinstance(entries, Computed):
            assert large[key].shape[entries.axis] == before[key].shape[entries.axis] + 3
