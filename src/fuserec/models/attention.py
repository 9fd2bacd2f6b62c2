"""Self-attention in plain matrix products, so that every exporter and quantizer sees only Linear layers.

`torch.nn.TransformerEncoderLayer` and fused attention operators are faster on a GPU while training, but they switch
paths on flags and shapes and mask with -inf, which turns a row of nothing but padding into NaN. The arithmetic here
is the same on every path.
"""

from __future__ import annotations

from collections.abc import Sequence
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
            mask: (B, 1, L, L) or (B, 1, 1, L) float32 from `attention_mask`; with `last`, (B, L) bool, False where the
                position is padding: the last position sees all else, causal or not.
            last: only the last position asks.

        Returns:
            (B, L, dim) float32, with `last` (B, dim).
        """
        if last:
            return self._last(x, mask)
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        logits = query @ key.transpose(-1, -2) * self.scale + self._bias(x.shape[1]) + mask
        weights = torch.softmax(logits, dim=-1)
        attended: Tensor = self.out((weights @ value).transpose(1, 2).flatten(2))
        return attended

    def _last(self, x: Tensor, present: Tensor) -> Tensor:
        """As `forward` with `last`: the same products in another order, so that only the last position meets a weight.

            (Q y) . (K x_j)  =  (K^T Q y) . x_j           sum_j w_j V x_j  =  V sum_j w_j x_j

        Keys and values are then x itself, and of four weights there remain two products, K^T Q and O V of each head
        (as DeepSeek-V2, 2024, decodes), which the exporter folds into constants. They hold n_heads / 2 times as much as
        the four. The bias of the keys adds the same to all logits of a head, which a softmax does not see; that of the
        values is added once, as the w_j sum to 1.
        """
        dim, heads = x.shape[2], self.n_heads
        query, key, value = (layer.weight.view(heads, -1, dim) for layer in (self.query, self.key, self.value))
        # h: heads, e: inside a head, d: what comes in, f: what goes out.
        asking = torch.einsum("hed,hef->hfd", query, key) * self.scale
        asking_bias = torch.einsum("he,hef->hf", self.query.bias.view(heads, -1), key) * self.scale
        answering = torch.einsum("fhe,hed->fhd", self.out.weight.view(dim, heads, -1), value)

        asked = nn.functional.linear(x[:, -1], asking.flatten(0, 1), asking_bias.flatten()).view(-1, heads, dim)
        bias = torch.where(present[:, None], self._last_bias(x.shape[1]), MASKED)
        weights = torch.softmax(asked @ x.transpose(1, 2) + bias, dim=-1)
        return nn.functional.linear((weights @ x).flatten(1), answering.flatten(1), self.out(self.value.bias))

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

    def _last_bias(self, length: int) -> Tensor:
        """(heads, L), the last row of `_bias`: a slice of the table, which begins with the shortest distance."""
        farthest_first = self.distance_bias.weight.flip(0).T
        return farthest_first.narrow(1, farthest_first.shape[1] - self.most_ahead - length, length)


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
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, dim); `mask` as in `SelfAttention`.

        A served model returns the last position alone. What its last block makes of the others is not computed.
        """
        attended = self.attention(self.attention_norm(x), mask, last=last)
        x = (x[:, -1] if last else x) + self.dropout(attended)
        mixed: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return mixed


def run_blocks(
    blocks: Sequence[nn.Module], x: Tensor, present: Tensor, *, causal: bool = True, last: bool = False
) -> Tensor:
    """Run blocks in turn.

    Args:
        blocks: one or more, called as an `AttentionBlock` is.
        x: (B, L, dim) float32.
        present: (B, L) bool, False where the position is padding.
        causal: as in `attention_mask`.
        last: only the last position is asked for.

    Returns:
        (B, L, dim) float32, with `last` (B, dim).
    """
    *before, final = blocks
    mask = attention_mask(present, causal=causal) if before or not last else present
    for block in before:
        x = block(x, mask)
    x = final(x, present if last else mask, last=last)
    return x
