"""Recipes are found by name."""

from __future__ import annotations

import dataclasses

import pytest

from fuserec.cli import RECIPE_NAMES
from fuserec.errors import UsageError
from fuserec.train.recipes import RECIPES, get_recipe


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="recipe is 'three-tower'; expected one of .*two-tower"):
        get_recipe("three-tower")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_defaults_and_one_line(name: str) -> None:
    recipe = get_recipe(name)
    assert dataclasses.is_dataclass(recipe.config_type)
    recipe.config_type()
    assert "\n" not in recipe.description


def test_help_names_every_recipe() -> None:
    assert RECIPE_NAMES.replace(" or ", ", ").split(", ") == list(RECIPES)
