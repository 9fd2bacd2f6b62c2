"""Recipes by name: how the command line finds what it can train."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker import AttentionRanker, CrossRanker, MLPRanker
from fuserec.models.sequential import BERT4Rec, GRU4Rec, LSTMRec, NextItNet, SASRec
from fuserec.train.data import read_folder
from fuserec.train.dialogue import DialogueRecipe, train_dialogue
from fuserec.train.dialogues import read_dialogues
from fuserec.train.distill import distill, get_student
from fuserec.train.matrix_factorization import MatrixFactorizationRecipe, train_matrix_factorization
from fuserec.train.ranking import RankerRecipe, ranker_trainer
from fuserec.train.ranking_text import TextRankerRecipe, train_text_ranker
from fuserec.train.sequential import MaskedRecipe, RecurrentRecipe, SequentialRecipe, sequential_trainer
from fuserec.train.text import TextRecipe, train_text
from fuserec.train.two_tower import TwoTowerRecipe, train_two_tower


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Attributes:
        config_type: frozen dataclass of options, all with defaults.
        train: `train(dataset, config, run)` -> checkpoint.
        description: one line for `--help`.
        read: makes the data set that `train` takes of a data folder.
    """

    config_type: type[Any]
    train: Callable[..., Checkpoint]
    description: str
    read: Callable[[Path], Any] = read_folder

    def options(self, given: Mapping[str, object]) -> Any:
        """Return the options, those that are not given being the defaults.

        Raises:
            UsageError: if there is no such option, or a value makes no sense.
        """
        known = [field.name for field in dataclasses.fields(self.config_type)]
        if unknown := sorted(given.keys() - set(known)):
            raise UsageError(f"this recipe has no {', '.join(unknown)}; expected some of {', '.join(known)}")
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
    "text": Recipe(
        TextRecipe, train_text, "pretrained text encoder over item texts, tuned on histories; knows new items"
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
    "ranker-text": Recipe(
        TextRankerRecipe, train_text_ranker, "re-ranks few candidates: history and candidate read as one text"
    ),
    "dialogue": Recipe(
        DialogueRecipe, train_dialogue, "the conversation so far to a reply from a list, both as text", read_dialogues
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


def distilled(student: str, teacher: Checkpoint) -> Recipe:
    """Return the recipe by which a teacher trains a student; it has the options of both.

    Raises:
        UsageError: if there is no such student.
    """
    description = f"{student}, taught by a {teacher.architecture}"
    return Recipe(get_student(student).recipe_type, partial(distill, student, teacher), description)


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


def option_table(recipe: Recipe) -> list[tuple[str, str, str, str]]:
    """Return name, type, default and meaning of each option of a recipe; the meaning is from the docstrings."""
    types = typing.get_type_hints(recipe.config_type)
    meanings: dict[str, str] = {}
    for base in reversed(recipe.config_type.__mro__):
        meanings |= _meanings(base.__dict__.get("__doc__") or "")
    return [
        (field.name, types[field.name].__name__, str(field.default), meanings.get(field.name, ""))
        for field in dataclasses.fields(recipe.config_type)
    ]


def _meanings(docstring: str) -> dict[str, str]:
    """Read the section `Attributes` of a docstring."""
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    section = section.partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
