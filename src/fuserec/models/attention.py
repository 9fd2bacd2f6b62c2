"""Self-attention in plain matrix products, so that every exporter and quantizer sees only Linear layers.

`torch.nn.TransformerEncoderLayer` and fused attention operators are faster on a GPU while training, but they switch
paths on flags and shapes and mask with -inf, which turns a row of nothing but padding into NaN. The arithmetic here
is the same on every path.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

# Large enough that exp() of it is exactly zero in float32 beside any sane logit, small enough for float16.
MASKED: Final = -1e4


def attention_mask(present: Tensor, *, causal: bool = True) -> Tensor:
    """Return what is added to the attention logits so that no position sees padding.

    Args:
        present: (B, L) bool, False where the position is padding.
        causal: each position sees itself and what came before it, nothing later.

    Returns:
        (B, 1, L, L) float32: 0 where query position i may look at key position j, `MASKED` elsewhere. (B, 1, 1, L) if
        not causal, as it is then the same for all query positions.
    """
    visible = present[:, None, None, :]
    if causal:
        position = torch.arange(present.shape[1], device=present.device)
        visible = visible & (position[None, :] <= position[:, None])[None, None, :, :]
    return torch.where(visible, 0.0, MASKED)


class SelfAttention(nn.Module):
    """Multi-head attention whose only notion of position is how many steps back (or ahead) a key lies.

    logit[h, i, j] = q[h, i] . k[h, j] / sqrt(d_head) + bias[h, i - j]

    A learned bias per head and distance (as in T5, Raffel et al. 2020) makes the output at the last position depend
    on positions counted from the end: left padding changes nothing, and every position of a training sequence is an
    example as good as the last one.
    """

    def __init__(self, dim: int, n_heads: int, max_length: int, *, causal: bool = True) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.most_ahead = 0 if causal else max_length - 1
        self.scale = (dim // n_heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.distance_bias = nn.Embedding(max_length + self.most_ahead, n_heads)
        nn.init.zeros_(self.distance_bias.weight)

    def forward(self, x: Tensor, mask: Tensor, *, last: bool = False) -> Tensor:
        """Attend.

        Args:
            x: (B, L, dim) float32, L at most `max_length`.
            mask: (B, 1, L, L) or (B, 1, 1, L) float32 from `attention_mask`.
            last: only the last position asks.

        Returns:
            (B, L, dim) float32, (B, 1, dim) of the last position.
        """
        asking, bias = x, self._bias(x.shape[1])
        if last:
            asking, bias, mask = x[:, -1:], bias[:, -1:], mask[:, :, -1:]
        query = self._split(self.query(asking))
        key, value = self._split(self.key(x)), self._split(self.value(x))
        logits = query @ key.transpose(-1, -2) * self.scale + bias + mask
        weights = torch.softmax(logits, dim=-1)
        attended: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, dim) -> (B, heads, L, dim / heads)."""
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.n_heads, dim // self.n_heads).transpose(1, 2)

    def _bias(self, length: int) -> Tensor:
        """(heads, L, L); an embedding look-up, whose gradient is summed in a fixed order, unlike indexing's."""
        position = torch.arange(length, device=self.distance_bias.weight.device)
        # If causal, keys to the right of the query are masked anyway; the clamp only keeps their index legal.
        distance = (position[:, None] - position[None, :] + self.most_ahead).clamp(min=0)
        bias: Tensor = self.distance_bias(distance)
        return bias.permute(2, 0, 1)


class AttentionBlock(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer MLP, each added to its input."""

    def __init__(self, dim: int, n_heads: int, max_length: int, dropout: float, *, causal: bool = True) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, n_heads, max_length, causal=causal)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, *, last: bool = False) -> Tensor:
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, 1, dim); `mask` as in `attention_mask`.

        A served model returns the last position alone. What its last block makes of the others is not computed: five
        sixths of the work of a two-tower with 50 items of history.
        """
        attended = self.attention(self.attention_norm(x), mask, last=last)
        x = (x[:, -1:] if last else x) + self.dropout(attended)
        mixed: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return mixed
