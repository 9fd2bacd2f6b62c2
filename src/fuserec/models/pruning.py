"""Structured pruning by magnitude: whole hidden units of feed-forward pairs, Linear -> activation -> Linear.

A unit is a row of the first layer with its bias, and a column of the second. Its weight is the product of their
lengths, which does not change if one is scaled up and the other down (Li et al. 2017 rank filters by their norm alone).
A masked unit contributes nothing whatever its input, so taking it out does not change what the pair returns.

No configuration has a field for the width of these pairs, so a checkpoint keeps its shapes and holds zeros; the
exporter takes them out with `drop_masked_`. Attention heads are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pair(NamedTuple):
    """Two layers with an element-wise activation between them; smaller ones take their places in `parent`."""

    parent: nn.Sequential
    inner: nn.Linear
    outer: nn.Linear


def pairs(module: nn.Module) -> Iterator[Pair]:
    """Find the feed-forward pairs of a module."""
    for part in module.modules():
        if isinstance(part, nn.Sequential) and len(part) == 3:
            inner, activation, outer = part
            if isinstance(inner, nn.Linear) and isinstance(outer, nn.Linear) and not list(activation.parameters()):
                yield Pair(part, inner, outer)


def choose_units(weight_in: Tensor, weight_out: Tensor, share: float) -> Tensor:
    """Choose the units of least weight.

    Args:
        weight_in: (hidden, n_in) float32, of the first layer.
        weight_out: (n_out, hidden) float32, of the second.
        share: of the units to choose, rounded down; 0 <= share < 1.

    Returns:
        (floor(share * hidden),) int64, rising.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"share is {share}; expected 0 <= share < 1")
    hidden = weight_in.shape[0]
    if weight_out.shape[1] != hidden:
        raise ValueError(f"weight_out is {tuple(weight_out.shape)}; expected (n_out, {hidden})")
    weight = weight_in.norm(dim=1) * weight_out.norm(dim=0)
    # A stable order, so that equal weights, such as zeros, are chosen alike every time.
    order: Tensor = weight.argsort(stable=True)
    return order[: int(share * hidden)].sort().values


@torch.no_grad()
def mask_units_(inner: nn.Linear, outer: nn.Linear, units: Tensor) -> None:
    """Set all weights of the given units, (N,) int64, to zero in place."""
    inner.weight[units] = 0.0
    outer.weight[:, units] = 0.0
    if inner.bias is not None:
        inner.bias[units] = 0.0


def mask_(module: nn.Module, share: float) -> int:
    """Mask a share of the units of every pair, those of least weight; return how many pairs there are."""
    found = list(pairs(module))
    for _, inner, outer in found:
        mask_units_(inner, outer, choose_units(inner.weight, outer.weight, share))
    return len(found)


def masked_units(inner: nn.Linear, outer: nn.Linear) -> Tensor:
    """Return which units contribute nothing: (hidden,) bool."""
    return (outer.weight == 0).all(dim=0)


def shrink_(module: nn.Module, share: float) -> int:
    """Take a share of the units of every pair out for good, the layers becoming smaller; return how many.

    A module whose training masked that share returns what it did before.
    """
    removed = 0
    for pair in list(pairs(module)):
        units = choose_units(pair.inner.weight, pair.outer.weight, share)
        kept = torch.ones(pair.inner.out_features, dtype=torch.bool, device=pair.inner.weight.device)
        kept[units] = False
        removed += _keep_(pair, kept)
    return removed


def drop_masked_(module: nn.Module) -> int:
    """Take the masked units of every pair out for good; return how many.

    What the pair returns stays the same, but for the order in which products are added up.

    One unit of a pair stays, masked or not: runtimes do not agree on matrices without rows.
    """
    removed = 0
    for pair in list(pairs(module)):
        kept = ~masked_units(pair.inner, pair.outer)
        kept[0] |= not bool(kept.any())
        removed += _keep_(pair, kept)
    return removed


@torch.no_grad()
def _keep_(pair: Pair, kept: Tensor) -> int:
    """Put layers of the `kept` units, (hidden,) bool, in place of a pair's; return how many units went."""
    parent, inner, outer = pair
    parent[0] = _linear(inner.weight[kept], None if inner.bias is None else inner.bias[kept])
    parent[2] = _linear(outer.weight[:, kept], outer.bias)
    return int((~kept).sum())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer
