"""Recipes by name: how the command line finds what it can train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.two_tower import TwoTowerRecipe, train_two_tower


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        config_type: frozen dataclass of options, all with defaults.
        train: `train(dataset, config, *, progress)` -> checkpoint.
        description: one line for `--help`.
    """

    config_type: type[Any]
    train: Callable[..., Checkpoint]
    description: str


RECIPES: Final[dict[str, Recipe]] = {
    "two-tower": Recipe(
        TwoTowerRecipe,
        train_two_tower,
        "contrastive two-tower over user ids, histories and item features (InfoNCE, in-batch negatives, logQ)",
    ),
}


def get_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe is {name!r}; expected one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]
