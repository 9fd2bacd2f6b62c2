"""Architecture names, as a checkpoint's `config.json` spells them, and the classes they stand for.

A new architecture is one line in `ARCHITECTURES`: its configuration is a frozen dataclass of JSON values, its module
takes that configuration and nothing else.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from fuserec.errors import CheckpointError
from fuserec.models.matrix_factorization import MatrixFactorization, MatrixFactorizationConfig
from fuserec.models.ranker import AttentionRanker, CrossRanker, MLPRanker, RankerConfig
from fuserec.models.ranker_text import TextRanker, TextRankerConfig
from fuserec.models.recbole import RecBoleGRU4Rec, RecBoleGRU4RecConfig, RecBoleSASRec, RecBoleSASRecConfig
from fuserec.models.sequential import BERT4Rec, GRU4Rec, LSTMRec, NextItNet, SASRec, SequentialConfig
from fuserec.models.text import TextConfig, TextRetriever
from fuserec.models.two_tower import TwoTower, TwoTowerConfig


@dataclass(frozen=True)
class Architecture:
    """A configuration dataclass and the module built from it."""

    config_type: type[Any]
    module_type: Callable[[Any], nn.Module]


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "two-tower": Architecture(TwoTowerConfig, TwoTower),
    "mf": Architecture(MatrixFactorizationConfig, MatrixFactorization),
    "sasrec": Architecture(SequentialConfig, SASRec),
    "gru4rec": Architecture(SequentialConfig, GRU4Rec),
    "lstm": Architecture(SequentialConfig, LSTMRec),
    "conv": Architecture(SequentialConfig, NextItNet),
    "bert4rec": Architecture(SequentialConfig, BERT4Rec),
    "text": Architecture(TextConfig, TextRetriever),
    "recbole-sasrec": Architecture(RecBoleSASRecConfig, RecBoleSASRec),
    "recbole-gru4rec": Architecture(RecBoleGRU4RecConfig, RecBoleGRU4Rec),
    "ranker-mlp": Architecture(RankerConfig, MLPRanker),
    "ranker-attention": Architecture(RankerConfig, AttentionRanker),
    "ranker-dcn": Architecture(RankerConfig, CrossRanker),
    "ranker-text": Architecture(TextRankerConfig, TextRanker),
}


def build_module(name: str, arguments: Mapping[str, object]) -> nn.Module:
    """Build the untrained module of an architecture.

    Args:
        name: a key of `ARCHITECTURES`.
        arguments: the fields of its configuration; those with a default may be left out.

    Raises:
        CheckpointError: if the name is unknown or the arguments do not fit.
    """
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise CheckpointError(f"architecture is {name!r}; expected one of {', '.join(sorted(ARCHITECTURES))}")
    _check_arguments(architecture.config_type, arguments)
    try:
        config = architecture.config_type(**arguments)
    except ValueError as error:
        raise CheckpointError(f"arguments of {name} do not fit: {error}") from error
    return architecture.module_type(config)


def _check_arguments(config_type: type[Any], arguments: Mapping[str, object]) -> None:
    """Compare names and types with the fields, as JSON carries no types of its own."""
    types = typing.get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    unknown = sorted(arguments.keys() - fields.keys())
    if unknown:
        raise CheckpointError(f"arguments hold unknown {', '.join(unknown)}; expected only {', '.join(fields)}")
    missing = [name for name, field in fields.items() if name not in arguments and field.default is dataclasses.MISSING]
    if missing:
        raise CheckpointError(f"arguments lack {', '.join(missing)}; expected {', '.join(fields)}")
    for name, value in arguments.items():
        expected = types[name]
        allowed = (int, float) if expected is float else expected
        # bool is a subclass of int, yet `dim: true` is a mistake.
        if not isinstance(value, allowed) or (isinstance(value, bool) and expected is not bool):
            raise CheckpointError(f"argument {name} is {value!r}; expected {expected.__name__}")
