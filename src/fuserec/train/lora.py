"""Low-rank adaptation of a transformer (LoRA; Hu et al. 2021), which leaves a plain transformer behind; by `peft`."""

from __future__ import annotations

from typing import Any, Final

# Linear layers of attention in the BERT family, by the last part of their name.
TARGETS: Final = ("query", "key", "value", "q_lin", "k_lin", "v_lin")


def add_lora(transformer: Any, rank: int, alpha: float) -> Any:
    """Freeze a transformer and put matrices of low rank beside those of its attention; they start as zero.

    Args:
        transformer: a model of `transformers`.
        rank: of the matrices.
        alpha: their product is multiplied by `alpha / rank`.

    Returns:
        What takes the transformer's place until `merge_lora`.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, _ in transformer.named_modules()}
    targets = [name for name in TARGETS if name in names]
    return get_peft_model(transformer, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))


def merge_lora(adapted: Any) -> Any:
    """Add the low-rank matrices to the weights and return the transformer under its old parameter names."""
    return adapted.merge_and_unload()
