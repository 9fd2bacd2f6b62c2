"""Which weights of a pretrained encoder are tuned.

frozen    none
lora      low-rank updates of all linear layers, added to the weights afterwards; see `fuserec.train.lora`
adapter   bottlenecks behind every layer (Houlsby et al. 2019), which stay
top       the last layers
full      all
"""

from __future__ import annotations

from typing import Final

from torch import nn

from fuserec.models.text_encoder import Adapter, TextEncoder

TUNINGS: Final = ("frozen", "lora", "adapter", "top", "full")


def freeze(encoder: TextEncoder) -> None:
    """Leave nothing of the transformer to be trained."""
    encoder.transformer.requires_grad_(False)


def add_adapters(encoder: TextEncoder, *, width: int) -> None:
    """Train adapters and nothing else."""
    freeze(encoder)
    encoder.insert_adapters(width)
    for module in encoder.transformer.modules():
        if isinstance(module, Adapter):
            module.requires_grad_(True)


def open_top(encoder: TextEncoder, *, layers: int) -> None:
    """Train the last layers.

    Raises:
        ValueError: if there are fewer.
    """
    freeze(encoder)
    if layers > len(encoder.layers):
        raise ValueError(f"top_layers is {layers}; expected at most {len(encoder.layers)}, the layers of the encoder")
    for layer in encoder.layers[-layers:]:
        layer.requires_grad_(True)


def n_trained(module: nn.Module) -> int:
    """Return the number of parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
