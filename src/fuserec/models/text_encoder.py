"""A BERT-family transformer that turns tokens into unit vectors; the network itself is that of `transformers`."""

from __future__ import annotations

import json
from typing import Any, Final

import torch
from torch import Tensor, nn

from fuserec.errors import UsageError
from fuserec.models.attention import MASKED
from fuserec.models.checks import check_layers
from fuserec.models.retriever import unit_vectors
from fuserec.tokens import LITERAL_PAD
from fuserec.untrusted.documents import parse_json

POOLINGS: Final = ("mean", "cls", "max")
DTYPES: Final = ("dtype", "torch_dtype")
_KNOWN_DTYPES: Final = ("float32", "float16", "bfloat16", "float64", "auto", None)


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
    """Tokens to unit vectors: transformer, pooling over the tokens, linear projection.

    Args:
        encoder: configuration of the transformer as JSON, as its `config.json` holds it; `model_type` is one that the
            library knows, and no code but the library's is run.
        dim: width of the vectors.
        adapter: width of the bottleneck adapters behind every layer; 0 for none.
        pooling: one of `POOLINGS`: what of the tokens' states is taken, "cls" being the first token's.
    """

    def __init__(self, encoder: str, dim: int, adapter: int = 0, pooling: str = "mean") -> None:
        from transformers import AutoModel

        super().__init__()
        self.pooling = pooling
        config = transformer_config(encoder)
        # Eager attention is plain matrix products, which every exporter knows.
        from_config: Any = AutoModel.from_config  # the library has no types here
        self.transformer: Any = from_config(config, attn_implementation="eager")
        self.transformer.pooler = None
        self.pad_id = int(config.pad_token_id or 0)
        if adapter:
            self.insert_adapters(adapter)
        self.projection = nn.Linear(config.hidden_size, dim, bias=False)
        with torch.no_grad():
            nn.init.eye_(self.projection.weight)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the transformer, lowest first.

        Raises:
            UsageError: if it is not built as BERT is.
        """
        layers = getattr(getattr(self.transformer, "encoder", None), "layer", None)
        if not isinstance(layers, nn.ModuleList):
            kind = self.transformer.config.model_type
            raise UsageError(
                f"encoder is a {kind!r}, whose layers are not those of BERT; expected BERT, RoBERTa or MPNet"
            )
        return layers

    def insert_adapters(self, width: int) -> None:
        """Put an adapter behind every layer; what the encoder says is as before until they are trained."""
        for layer in self.layers:
            layer.output = AdaptedOutput(layer.output, self.transformer.config.hidden_size, width)  # type: ignore[arg-type]

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts: (N, T) int64 tokens, padded with `pad_id` -> (N, dim) float32 unit vectors.

        `LITERAL_PAD` stands for that token where the text holds it: it is read, and padding is not.
        """
        return self.project(self.pool(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the transformer's states, pooled: (N, T) int64 tokens -> (N, hidden size)."""
        present = tokens != self.pad_id
        ids = torch.where(tokens == LITERAL_PAD, self.pad_id, tokens)
        states = self.transformer(input_ids=ids, attention_mask=present.long()).last_hidden_state
        if self.pooling == "cls":
            first: Tensor = states[:, 0]
            return first
        weights = present[..., None].to(states.dtype)
        if self.pooling == "max":
            largest: Tensor = (states + MASKED * (1.0 - weights)).amax(dim=1)
            return largest
        # As a product: ONNX Runtime's sum takes another order where there is one text, so its last bits would differ.
        pooled: Tensor = (weights.transpose(1, 2) @ states)[:, 0] / weights.sum(dim=1).clamp(min=1.0)
        return pooled

    def project(self, pooled: Tensor) -> Tensor:
        """Map pooled states (N, hidden size) to unit vectors (N, dim)."""
        return unit_vectors(self.projection(pooled))


def transformer_config(encoder: str) -> Any:
    """Read the configuration of a transformer from JSON.

    Raises:
        ValueError: if it is not JSON, of a kind that the library does not know, or absurdly deep.
    """
    from transformers import AutoConfig

    try:
        fields = parse_json(encoder)
    except ValueError as error:
        raise ValueError(f"encoder {error}") from error
    if not isinstance(fields.get("model_type"), str):
        raise ValueError("encoder has no model_type; expected the JSON of a transformer's config.json")
    for name in DTYPES:
        if fields.get(name) not in _KNOWN_DTYPES:
            raise ValueError(
                f"encoder has {name} {fields[name]!r}; expected one of {', '.join(map(str, _KNOWN_DTYPES))}"
            )
    # Weights are float32 here, whatever they were published in.
    config = AutoConfig.for_model(**{name: value for name, value in fields.items() if name not in DTYPES})
    check_layers(config, "num_hidden_layers")
    return config


def with_layers(encoder: str, count: int) -> str:
    """Return the configuration of a transformer with another number of layers, JSON."""
    config = transformer_config(encoder)
    config.num_hidden_layers = count
    return json.dumps(config.to_diff_dict() | {"model_type": config.model_type}, sort_keys=True)
