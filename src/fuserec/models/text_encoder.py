"""A BERT-family transformer that turns tokens into unit vectors; the network itself is that of `transformers`."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A bottleneck with a residual connection, the identity until it is trained (Houlsby et al. 2019)."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.up = nn.Linear(width, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., hidden) to the same shape."""
        adapted: Tensor = x + self.up(nn.functional.gelu(self.down(x)))
        return adapted


class AdaptedOutput(nn.Module):
    """The output part of a transformer layer with an adapter behind it."""

    def __init__(self, output: nn.Module, hidden: int, width: int) -> None:
        super().__init__()
        self.output = output
        self.adapter = Adapter(hidden, width)

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the part itself."""
        adapted: Tensor = self.adapter(self.output(*inputs))
        return adapted


class TextEncoder(nn.Module):
    """Tokens to unit vectors: transformer, mean over the tokens, linear projection.

    Args:
        encoder: configuration of the transformer as JSON, as its `config.json` holds it; `model_type` is one that the
            library knows, and no code but the library's is run.
        dim: width of the vectors.
        adapter: width of the bottleneck adapters behind every layer; 0 for none.
    """

    def __init__(self, encoder: str, dim: int, adapter: int = 0) -> None:
        from transformers import AutoModel

        super().__init__()
        config = transformer_config(encoder)
        # Eager attention is plain matrix products, which every exporter knows.
        from_config: Any = AutoModel.from_config  # the library has no types here
        self.transformer: Any = from_config(config, attn_implementation="eager")
        self.transformer.pooler = None
        self.pad_id = int(config.pad_token_id or 0)
        if adapter:
            for layer in self.transformer.encoder.layer:
                layer.output = AdaptedOutput(layer.output, config.hidden_size, adapter)
        self.projection = nn.Linear(config.hidden_size, dim, bias=False)
        with torch.no_grad():
            nn.init.eye_(self.projection.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts: (N, T) int64 tokens, padded with `pad_id` -> (N, dim) float32 unit vectors."""
        present = tokens != self.pad_id
        states = self.transformer(input_ids=tokens, attention_mask=present.long()).last_hidden_state
        weights = present[..., None].to(states.dtype)
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        return nn.functional.normalize(self.projection(pooled), dim=-1)


def transformer_config(encoder: str) -> Any:
    """Read the configuration of a transformer from JSON.

    Raises:
        ValueError: if it is not JSON, or of a kind that the library does not know.
    """
    from transformers import AutoConfig

    fields = json.loads(encoder)
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ValueError("encoder has no model_type; expected the JSON of a transformer's config.json")
    return AutoConfig.for_model(**fields)
