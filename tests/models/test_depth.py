"""Layers are dropped from the end, and what is left is a model that was there before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.depth import count_layers, drop_layers, keep_layers
from fuserec.models.registry import build_module
from fuserec.models.text import TextRetriever

Untrained = Callable[[str, Path], None]


def deep(untrained: Untrained, folder: Path, architecture: str, n_blocks: int) -> Checkpoint:
    """Return an untrained checkpoint with so many blocks."""
    untrained(architecture, folder)
    checkpoint = Checkpoint.load(folder)
    arguments = checkpoint.arguments | {"n_blocks": n_blocks}
    torch.manual_seed(1)
    return dataclasses.replace(
        checkpoint, arguments=arguments, state=build_module(architecture, arguments).state_dict()
    )


@pytest.mark.parametrize(
    "architecture", ["sasrec", "bert4rec", "conv", "gru4rec", "lstm", "two-tower", "ranker-mlp", "ranker-attention"]
)
def test_the_first_layers_stay(architecture: str, untrained: Untrained, tmp_path: Path) -> None:
    whole = deep(untrained, tmp_path / "whole", architecture, 3)
    smaller = drop_layers(whole, 1)
    assert (count_layers(whole), count_layers(smaller)) == (3, 2)
    assert smaller.arguments == whole.arguments | {"n_blocks": 2}
    assert smaller.state.keys() < whole.state.keys()
    assert all(torch.equal(tensor, whole.state[name]) for name, tensor in smaller.state.items())


def test_other_layers_move_to_their_new_places(untrained: Untrained, tmp_path: Path) -> None:
    whole = deep(untrained, tmp_path / "whole", "sasrec", 3)
    kept = keep_layers(whole, [0, 2])
    name = "user_tower.encoder.blocks.{}.mlp.0.weight"
    assert torch.equal(kept.state[name.format(1)], whole.state[name.format(2)])
    assert torch.equal(kept.state[name.format(0)], whole.state[name.format(0)])


def test_a_text_model_drops_layers_of_its_transformer_and_encodes_its_items_anew(
    untrained: Untrained, tmp_path: Path
) -> None:
    untrained("text", tmp_path)
    whole = Checkpoint.load(tmp_path)
    smaller = drop_layers(whole, 1)
    module: Any = smaller.module()
    assert isinstance(module, TextRetriever)
    assert len(module.encoder.layers) == 1
    assert smaller.arguments[
        "n_blocks" if "n_blocks" in whole.arguments else "dim"
    ]  # blocks of the tower are no layers
    table = smaller.state["user_tower.item_table"]
    assert not torch.allclose(table, whole.state["user_tower.item_table"])
    with torch.no_grad():
        torch.testing.assert_close(table[1:], module.catalogue())


def test_a_cross_encoder_drops_layers_too(untrained: Untrained, tmp_path: Path) -> None:
    untrained("ranker-text", tmp_path)
    smaller = drop_layers(Checkpoint.load(tmp_path), 1)
    assert json.loads(smaller.arguments["encoder"])["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("architecture", "count", "message"),
    [
        ("mf", 1, "drop_layers is 1, and this mf has no layers; nothing can be dropped"),
        ("ranker-mlp", 1, "this ranker-mlp has 1 layer; nothing can be dropped"),
        ("sasrec", 2, "drop_layers is 2, and this sasrec has 2 layers; expected 1 to 1"),
        ("sasrec", -1, "drop_layers is -1, and this sasrec has 2 layers; expected 1 to 1"),
    ],
)
def test_what_has_no_layer_to_spare_is_refused(
    architecture: str, count: int, message: str, untrained: Untrained, tmp_path: Path
) -> None:
    untrained(architecture, tmp_path)
    with pytest.raises(UsageError, match=message):
        drop_layers(Checkpoint.load(tmp_path), count)


def test_an_encoder_whose_layers_share_their_weights_is_refused(untrained: Untrained, tmp_path: Path) -> None:
    untrained("text", tmp_path)
    whole = Checkpoint.load(tmp_path)
    albert = {"model_type": "albert", "embedding_size": 8, "hidden_size": 32, "num_hidden_layers": 3} | {
        "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 400, "pad_token_id": 0,
    }  # fmt: skip
    arguments = whole.arguments | {"encoder": json.dumps(albert)}
    shared = dataclasses.replace(whole, arguments=arguments, state=build_module("text", arguments).state_dict())
    with pytest.raises(UsageError, match="weights of this text are those of 0 layers; expected 3, each with weights"):
        drop_layers(shared, 1)
