"""Dropping layers of a trained model: the first ones stay, the others are left out of configuration and weights.

The top layers of a transformer are those that can be spared best (Sajjad et al. 2020, "Poor Man's BERT"); models whose
training dropped layers at random keep every other one instead (LayerDrop; Fan et al. 2020), which ours did not.
Convolutions have a second reason: how far back a layer looks depends on its place, and the first ones keep theirs. What
must stay is the first layer; of a SASRec of four on MovieLens-100K, the first and third do as well as the first two
(test NDCG@10 0.109 and 0.108 before fine-tuning, 0.104 the whole), the last two do not (0.039). One seed each.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.models.text_encoder import transformer_config, with_layers

# Recurrent layers are numbered within one module, which a ranker keeps in a list of blocks of its own.
BLOCK_NAMES: Final = (re.compile(r"\bcells\.\w+_l(\d+)$"), re.compile(r"\bblocks\.(\d+)\."))
TRANSFORMER_NAMES: Final = (re.compile(r"\btransformer\..*?\blayer\.(\d+)\."),)


def count_layers(checkpoint: Checkpoint) -> int:
    """Return how many layers a model has, of those that can be dropped: of its transformer, or else its blocks."""
    if "encoder" in checkpoint.arguments:
        return int(transformer_config(checkpoint.arguments["encoder"]).num_hidden_layers)
    config: Any = checkpoint.module().config
    return int(getattr(config, "n_blocks", 0))


def drop_layers(checkpoint: Checkpoint, count: int) -> Checkpoint:
    """Drop the last `count` layers, at least one of those that the model has.

    Raises:
        UsageError: if the model has no layers, or would have none left.
    """
    layers = count_layers(checkpoint)
    if not 1 <= count < layers:
        has = f"{layers} layer{'' if layers == 1 else 's'}" if layers else "no layers"
        expected = f"expected 1 to {layers - 1}" if layers > 1 else "nothing can be dropped"
        raise UsageError(f"drop_layers is {count}, and this {checkpoint.architecture} has {has}; {expected}")
    return keep_layers(checkpoint, range(layers - count))


def keep_layers(checkpoint: Checkpoint, kept: Sequence[int]) -> Checkpoint:
    """Drop all layers but some.

    Args:
        checkpoint: what is left unchanged.
        kept: layers, counted from 0, rising.

    Returns:
        A checkpoint with the metrics of the whole one, which are not its own.

    Raises:
        UsageError: if the weights do not come in as many layers as the configuration says.
    """
    encoder = checkpoint.arguments.get("encoder")
    names = BLOCK_NAMES if encoder is None else TRANSFORMER_NAMES
    layers = count_layers(checkpoint)
    found = {layer for name in checkpoint.state if (layer := _layer(name, names)) is not None}
    if found != set(range(layers)):
        raise UsageError(
            f"the weights of this {checkpoint.architecture} are those of {len(found)} layers; expected {layers}, each "
            "with weights of its own"
        )
    place = {layer: number for number, layer in enumerate(kept)}
    state: dict[str, Tensor] = {}
    for name, tensor in checkpoint.state.items():
        layer = _layer(name, names)
        if layer is None:
            state[name] = tensor
        elif layer in place:
            state[_renumbered(name, names, place[layer])] = tensor
    size = {"n_blocks": len(kept)} if encoder is None else {"encoder": with_layers(encoder, len(kept))}
    smaller = dataclasses.replace(checkpoint, arguments=checkpoint.arguments | size, state=state)
    module = smaller.module()
    if isinstance(module, Retriever):
        module.refresh()
    return dataclasses.replace(smaller, state=module.state_dict())


def _match(name: str, names: Sequence[re.Pattern[str]]) -> re.Match[str] | None:
    return next((match for pattern in names if (match := pattern.search(name))), None)


def _layer(name: str, names: Sequence[re.Pattern[str]]) -> int | None:
    match = _match(name, names)
    return int(match[1]) if match else None


def _renumbered(name: str, names: Sequence[re.Pattern[str]], number: int) -> str:
    match = _match(name, names)
    assert match
    return f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
