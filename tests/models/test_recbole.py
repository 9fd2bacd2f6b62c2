"""The architectures that RecBole's weights are put into: promises of a retriever, and RecBole's own arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fuserec.models.recbole import ACTIVATIONS, RecBoleSASRecConfig
from fuserec.models.registry import build_module
from fuserec.models.sequential import Sequential

N_ITEMS, DIM, MAX_HISTORY = 30, 8, 12
SASREC: dict[str, Any] = {"inner": 20, "n_blocks": 2, "n_heads": 2}
GRU4REC: dict[str, Any] = {"hidden": 11, "n_blocks": 2}
NAMES = [pytest.param("recbole-sasrec", SASREC, id="sasrec"), pytest.param("recbole-gru4rec", GRU4REC, id="gru4rec")]


def built(name: str, options: dict[str, Any]) -> Sequential:
    torch.manual_seed(0)
    module = build_module(name, {"n_items": N_ITEMS, "dim": DIM, "max_history": MAX_HISTORY, **options})
    assert isinstance(module, Sequential)
    with torch.no_grad():
        for parameter in module.parameters():  # zeros and ones, as some begin, would hide what depends on them
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
        module.user_tower.item_embedding.weight[0].zero_()
    return module.eval()


def histories(batch: int, length: int) -> Tensor:
    return torch.randint(1, N_ITEMS + 1, (batch, length), generator=torch.Generator().manual_seed(1))


def encoded(module: Sequential, history: Tensor) -> Tensor:
    with torch.no_grad():
        vectors: Tensor = module.user_tower(torch.zeros(len(history), dtype=torch.int64), history)
    return vectors


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_padding_changes_nothing(name: str, options: dict[str, Any]) -> None:
    module, history = built(name, options), histories(4, 5)
    padded = torch.nn.functional.pad(history, (MAX_HISTORY - 5, 0))
    assert torch.allclose(encoded(module, history), encoded(module, padded), atol=1e-5)


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_order_and_every_item_matter(name: str, options: dict[str, Any]) -> None:
    module, history = built(name, options), histories(1, 6)
    base = encoded(module, history)
    assert not torch.allclose(base, encoded(module, history.flip(1)), atol=1e-4)
    for place in range(6):
        other = history.clone()
        other[0, place] = other[0, place] % N_ITEMS + 1
        assert not torch.allclose(base, encoded(module, other), atol=1e-6), f"place {place}"


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_an_empty_history_is_finite(name: str, options: dict[str, Any]) -> None:
    assert encoded(built(name, options), torch.zeros(2, 7, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sasrec_is_recboles_formula(activation: str) -> None:
    """Written out for one history without padding, block by block: add, then normalize; positions from the oldest."""
    module = built("recbole-sasrec", {**SASREC, "n_blocks": 1, "activation": activation})
    state = {name.removeprefix("user_tower."): value for name, value in module.state_dict().items()}
    history = histories(1, 4)[0]

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / x.var(-1, unbiased=False, keepdim=True).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    formulas = {
        "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
        "relu": lambda x: x.clamp(min=0),
        "swish": lambda x: x / (1 + torch.exp(-x)),
        "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
        "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    }
    x = state["item_embedding.weight"][history] + state["encoder.position_embedding.weight"][:4]
    x = norm(x, "encoder.LayerNorm")
    part = "encoder.layer.0.multi_head_attention"
    query, key, value = (linear(x, f"{part}.{name}") for name in ("query", "key", "value"))
    heads = []
    for columns in (slice(0, 4), slice(4, 8)):
        logits = query[:, columns] @ key[:, columns].T / 2.0
        logits = logits.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
        heads.append(logits.softmax(-1) @ value[:, columns])
    x = norm(linear(torch.cat(heads, -1), f"{part}.dense") + x, f"{part}.LayerNorm")
    part = "encoder.layer.0.feed_forward"
    inner = formulas[activation](linear(x, f"{part}.dense_1"))
    x = norm(linear(inner, f"{part}.dense_2") + x, f"{part}.LayerNorm")
    assert torch.allclose(encoded(module, history[None])[0], x[-1], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "celu"}, "activation is 'celu'; expected one of gelu"),
        ({"inner": 0}, "inner is 0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"n_heads": 3}, "multiple of n_heads"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecBoleSASRecConfig(N_ITEMS, **change)
