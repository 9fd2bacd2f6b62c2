"""Recipes by name: how the command line finds what it can train."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker import AttentionRanker, CrossRanker, MLPRanker
from fuserec.models.sequential import BERT4Rec, GRU4Rec, LSTMRec, NextItNet, SASRec
from fuserec.train.matrix_factorization import MatrixFactorizationRecipe, train_matrix_factorization
from fuserec.train.ranking import RankerRecipe, ranker_trainer
from fuserec.train.sequential import MaskedRecipe, RecurrentRecipe, SequentialRecipe, sequential_trainer
from fuserec.train.two_tower import TwoTowerRecipe, train_two_tower


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        config_type: frozen dataclass of options, all with defaults.
        train: `train(dataset, config, run)` -> checkpoint.
        description: one line for `--help`.
    """

    config_type: type[Any]
    train: Callable[..., Checkpoint]
    description: str

    def options(self, given: Mapping[str, object]) -> Any:
        """Return the options, those that are not given being the defaults.

        Raises:
            UsageError: if a value makes no sense.
        """
        try:
            return self.config_type(**given)
        except ValueError as error:
            raise UsageError(str(error)) from error


RECIPES: Final[dict[str, Recipe]] = {
    "two-tower": Recipe(
        TwoTowerRecipe,
        train_two_tower,
        "contrastive two-tower over user ids, histories and item features (InfoNCE, in-batch negatives, logQ)",
    ),
    "mf": Recipe(MatrixFactorizationRecipe, train_matrix_factorization, "matrix factorization by BPR"),
    "sasrec": Recipe(SequentialRecipe, sequential_trainer("sasrec", SASRec), "causal self-attention over the history"),
    "gru4rec": Recipe(RecurrentRecipe, sequential_trainer("gru4rec", GRU4Rec), "GRU cells over the history"),
    "lstm": Recipe(RecurrentRecipe, sequential_trainer("lstm", LSTMRec), "LSTM cells over the history"),
    "conv": Recipe(SequentialRecipe, sequential_trainer("conv", NextItNet), "dilated causal convolutions (NextItNet)"),
    "bert4rec": Recipe(
        MaskedRecipe, sequential_trainer("bert4rec", BERT4Rec), "self-attention both ways, guessing masked items"
    ),
    "ranker-mlp": Recipe(
        RankerRecipe, ranker_trainer("ranker-mlp", MLPRanker), "re-ranks candidates: MLP over user, item and features"
    ),
    "ranker-attention": Recipe(
        RankerRecipe,
        ranker_trainer("ranker-attention", AttentionRanker),
        "re-ranks candidates: each of them looks at the history (target attention)",
    ),
    "ranker-dcn": Recipe(
        RankerRecipe, ranker_trainer("ranker-dcn", CrossRanker), "re-ranks candidates: cross network (DCN-v2)"
    ),
}


_SWITCH: Final = {"true": True, "false": False}


def get_recipe(name: str) -> Recipe:
    """Look a recipe up.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe is {name!r}; expected one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def parse_settings(recipe: Recipe, settings: Sequence[str]) -> dict[str, object]:
    """Turn `name=value` texts into options of a recipe, which are numbers, texts or true and false.

    Raises:
        UsageError: if a name is not an option, the message listing those that are, or a value is not of its type.
    """
    types = typing.get_type_hints(recipe.config_type)
    defaults = {field.name: field.default for field in dataclasses.fields(recipe.config_type)}
    parsed: dict[str, object] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in defaults:
            known = ", ".join(f"{option}={default}" for option, default in defaults.items())
            raise UsageError(f"--set came with {name!r}; expected one of {known}")
        try:
            parsed[name] = _SWITCH[value] if types[name] is bool else types[name](value)
        except (ValueError, KeyError):
            raise UsageError(f"--set {name} came as {value!r}; expected {types[name].__name__}") from None
    return parsed
