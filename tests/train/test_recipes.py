"""Recipes are found by name."""

from __future__ import annotations

import dataclasses

import pytest

from fuserec.cli._train import RECIPE_LINES
from fuserec.errors import UsageError
from fuserec.train.recipes import RECIPES, get_recipe, parse_settings


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="recipe is 'three-tower'; expected one of .*two-tower"):
        get_recipe("three-tower")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_defaults_and_one_line(name: str) -> None:
    recipe = get_recipe(name)
    assert dataclasses.is_dataclass(recipe.config_type)
    recipe.config_type()
    assert "\n" not in recipe.description


def test_help_has_the_line_of_every_recipe() -> None:
    assert {name: recipe.description for name, recipe in RECIPES.items()} == RECIPE_LINES


def test_settings_take_the_types_of_the_options() -> None:
    recipe = get_recipe("sasrec")
    options = recipe.options(parse_settings(recipe, ["dim=32", "dropout=0.5", "n_heads=4"]))
    assert (options.dim, options.dropout, options.n_heads) == (32, 0.5, 4)
    assert options.epochs == recipe.config_type().epochs


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("help", "--set came with 'help'; expected one of epochs=40, .*n_blocks=2"),
        ("layers=3", "--set came with 'layers'"),
        ("dim=1.5", "--set dim came as '1.5'; expected int"),
        ("dim", "--set dim came as ''; expected int"),
        ("dropout=much", "--set dropout came as 'much'; expected float"),
        ("dropout=2", "dropout is 2.0; expected 0 <= dropout < 1"),
        ("n_heads=3", "expected a multiple of n_heads = 3"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: str, message: str) -> None:
    recipe = get_recipe("sasrec")
    with pytest.raises(UsageError, match=message):
        recipe.options(parse_settings(recipe, [setting]))
