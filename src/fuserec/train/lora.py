"""Low-rank adaptation of a transformer (LoRA; Hu et al. 2021), which leaves a plain transformer behind; by `peft`."""

from __future__ import annotations

from typing import Any, Protocol


class Adaptable(Protocol):
    """What holds a model of `transformers`."""

    transformer: Any


def add_lora(encoder: Adaptable, *, rank: int, alpha: int) -> None:
    """Freeze a transformer and train low-rank updates of its linear layers, which start as zero, until `merge_lora`.

    Args:
        encoder: holds the transformer.
        rank: of the updates.
        alpha: they are multiplied by `alpha / rank`.
    """
    from peft import LoraConfig, LoraModel

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    encoder.transformer = LoraModel(encoder.transformer, config, "default")


def merge_lora(encoder: Adaptable) -> None:
    """Add the low-rank updates to the weights, which brings the transformer back under its old parameter names."""
    encoder.transformer = encoder.transformer.merge_and_unload()
