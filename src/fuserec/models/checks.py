"""Checks that configurations and recipes make of their own fields, with one wording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_LAYERS: Final = 1024  # ten times what the deepest networks of the field have


def describe_names(names: Sequence[str]) -> str:
    """Return the first few of some names, and how many there are."""
    some = ", ".join(names[:5])
    return some if len(names) <= 5 else f"{some} and {len(names) - 5} more"


def check_at_least(options: object, least: int, *names: str) -> None:
    """Raise ValueError unless all of the named fields are `least` or more."""
    for name in names:
        if getattr(options, name) < least:
            raise ValueError(f"{name} is {getattr(options, name)}; expected at least {least}")


def check_layers(options: object, *names: str) -> None:
    """Raise ValueError unless the named fields, each a number of layers, are `MAX_LAYERS` or less.

    Layers are built one by one before they are compared with the weights, so a number alone could fill the memory.
    """
    for name in names:
        if getattr(options, name, 0) > MAX_LAYERS:
            raise ValueError(f"{name} is {getattr(options, name)}; expected at most {MAX_LAYERS}")


def check_share(options: object, *names: str) -> None:
    """Raise ValueError unless all of the named fields are from 0 up to, and not including, 1."""
    for name in names:
        if not 0.0 <= getattr(options, name) < 1.0:
            raise ValueError(f"{name} is {getattr(options, name)}; expected 0 <= {name} < 1")


def check_probability(options: object, *names: str) -> None:
    """Raise ValueError unless all of the named fields are from 0 to 1, both included."""
    for name in names:
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise ValueError(f"{name} is {getattr(options, name)}; expected 0 <= {name} <= 1")


def check_choice(options: object, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the named field is one of `choices`."""
    if getattr(options, name) not in choices:
        raise ValueError(f"{name} is {getattr(options, name)!r}; expected one of {', '.join(choices)}")


def check_heads(dim: int, n_heads: int) -> None:
    """Raise ValueError unless `dim` can be divided among the attention heads."""
    if dim % n_heads:
        raise ValueError(f"dim is {dim}; expected a multiple of n_heads = {n_heads}")
