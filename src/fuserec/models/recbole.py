"""SASRec and GRU4Rec as the library RecBole computes them (Zhao et al. 2021), so that its weights give its scores.

    here                                             SASRec, GRU4Rec of `fuserec.models.sequential`
    absolute positions, counted from the oldest      relative positions
    normalized after each addition, no norm at the end  normalized before each layer and at the end
    a GRU wider than the vectors                     as wide

There a history is padded on the right and its last state looked up; here it is padded on the left, and counting
positions from the oldest item present makes both the same. Nothing here is trained: `fuserec.importers` fills it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from fuserec.models.attention import attention_mask
from fuserec.models.checks import check_at_least, check_choice
from fuserec.models.sequential import SequenceTower, Sequential, SequentialConfig

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "gelu": nn.functional.gelu,
    "relu": torch.relu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True)
class RecBoleSASRecConfig(SequentialConfig):
    """As `SequentialConfig`, with what RecBole lets one choose.

    Attributes:
        inner: width inside the feed-forward layers, RecBole's `inner_size`.
        activation: between them, RecBole's `hidden_act`.
        norm_eps: added to the variance by the layer norms, RecBole's `layer_norm_eps`.
    """

    inner: int = 256
    activation: str = "gelu"
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "inner")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        if not 0.0 < self.norm_eps < 1.0:
            raise ValueError(f"norm_eps is {self.norm_eps}; expected 0 < norm_eps < 1")


@dataclass(frozen=True)
class RecBoleGRU4RecConfig(SequentialConfig):
    """As `SequentialConfig`.

    Attributes:
        hidden: width of the GRU's state, RecBole's `hidden_size`.
    """

    hidden: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "hidden")


class PostNormAttention(nn.Module):
    """Causal multi-head attention, added to its input and normalized."""

    def __init__(self, config: RecBoleSASRecConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)
        self.value = nn.Linear(config.dim, config.dim)
        self.dense = nn.Linear(config.dim, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, L, dim) to (B, L, dim); `mask` as in `attention_mask`."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + mask
        attended = torch.softmax(logits, dim=-1) @ value
        mixed: Tensor = self.LayerNorm(self.dense(attended.transpose(1, 2).flatten(2)) + x)
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, heads, L, dim / heads)."""
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.n_heads, dim // self.n_heads).transpose(1, 2)


class PostNormFeedForward(nn.Module):
    """Two layers, added to their input and normalized."""

    def __init__(self, config: RecBoleSASRecConfig) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(config.dim, config.inner)
        self.activation = ACTIVATIONS[config.activation]
        self.dense_2 = nn.Linear(config.inner, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, dim) to (B, L, dim)."""
        mixed: Tensor = self.LayerNorm(self.dense_2(self.activation(self.dense_1(x))) + x)
        return mixed


class PostNormBlock(nn.Module):
    """Attention and feed-forward; names are those of RecBole's state dict."""

    def __init__(self, config: RecBoleSASRecConfig) -> None:
        super().__init__()
        self.multi_head_attention = PostNormAttention(config)
        self.feed_forward = PostNormFeedForward(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (B, L, dim) to (B, L, dim); `mask` as in `attention_mask`."""
        mixed: Tensor = self.feed_forward(self.multi_head_attention(x, mask))
        return mixed


class PostNormTransformer(nn.Module):
    """Adds positions, normalizes, and runs the blocks."""

    def __init__(self, config: RecBoleSASRecConfig) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(config.max_history, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.layer = nn.ModuleList(PostNormBlock(config) for _ in range(config.n_blocks))

    def forward(self, x: Tensor, present: Tensor, *, last: bool = False) -> Tensor:
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, dim); `present` is (B, L) bool."""
        position = (present.cumsum(dim=1) - 1).clamp(min=0)
        x = self.LayerNorm(x + self.position_embedding(position))
        mask = attention_mask(present)
        for block in self.layer:
            x = block(x, mask)
        return x[:, -1] if last else x


class WideRecurrence(nn.Module):
    """GRU layers without bias terms, whose states are mapped to vectors; leading zeros leave the state at zero."""

    def __init__(self, config: RecBoleGRU4RecConfig) -> None:
        super().__init__()
        self.gru_layers = nn.GRU(config.dim, config.hidden, num_layers=config.n_blocks, bias=False, batch_first=True)
        self.dense = nn.Linear(config.hidden, config.dim)

    def forward(self, x: Tensor, present: Tensor, *, last: bool = False) -> Tensor:
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, dim); `present` (B, L) bool is not needed."""
        states, _ = self.gru_layers(x)
        states = states[:, -1] if last else states
        mapped: Tensor = self.dense(states)
        return mapped


class RecBoleSASRec(Sequential):
    """Self-attentive recommendation (Kang and McAuley 2018) over BERT's blocks."""

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """Post-norm attention, no norm at the end."""
        assert isinstance(config, RecBoleSASRecConfig)
        return _without_norm(SequenceTower(config, PostNormTransformer(config)))


class RecBoleGRU4Rec(Sequential):
    """Recurrent recommendation (Tan et al. 2016)."""

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """GRU cells, no norm at the end."""
        assert isinstance(config, RecBoleGRU4RecConfig)
        return _without_norm(SequenceTower(config, WideRecurrence(config)))


def _without_norm(tower: SequenceTower) -> SequenceTower:
    tower.norm = nn.Identity()
    return tower
