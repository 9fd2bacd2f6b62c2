"""Encoders of a sequence: (B, L, dim) item vectors to (B, L, dim), each position knowing itself and what came before.

    recurrence    GRU4Rec (Hidasi et al. 2016), and the same with LSTM cells
    convolution   NextItNet (Yuan et al. 2019): dilated causal convolutions in residual blocks
    attention     SASRec (Kang and McAuley 2018)

What padding on the left holds is zeros, and every encoder maps leading zeros to states that change nothing later, so
that a history gives the same vector whatever it is padded to. Asked for the `last` position alone, they return
(B, dim): what a served model needs, and for attention much less work.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from fuserec.models.attention import AttentionBlock, run_blocks

KERNEL: Final = 3
_DILATIONS: Final = (1, 2, 4)


class Recurrence(nn.Module):
    """GRU or LSTM layers without bias terms: zeros before the first item then leave the state at zero."""

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], dim: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        between = dropout if n_blocks > 1 else 0.0
        self.cells = cell(dim, dim, num_layers=n_blocks, bias=False, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, present: Tensor, *, last: bool = False) -> Tensor:
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, dim); `present` (B, L) bool is not needed."""
        states, _ = self.cells(x)
        states = states[:, -1] if last else states
        mapped: Tensor = self.out(self.dropout(states))
        return mapped


class ConvolutionBlock(nn.Module):
    """Two causal convolutions with a residual connection; the second looks twice as far back."""

    def __init__(self, dim: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.dilations = (dilation, 2 * dilation)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.dilations)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, dim, KERNEL, dilation=step) for step in self.dilations)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Map (B, L, dim) to (B, L, dim); positions that are not `present` (B, L, 1) float32 are kept at zero."""
        y = x
        for step, norm, convolution in zip(self.dilations, self.norms, self.convolutions, strict=True):
            y = torch.relu(norm(y)) * present
            y = convolution(nn.functional.pad(y.transpose(1, 2), (step * (KERNEL - 1), 0))).transpose(1, 2)
        out: Tensor = (x + self.dropout(y)) * present
        return out


class Convolution(nn.Module):
    """Blocks of dilated convolutions; the dilation doubles and starts anew."""

    def __init__(self, dim: int, n_blocks: int, dropout: float) -> None:
        super().__init__()
        steps = [_DILATIONS[block % len(_DILATIONS)] for block in range(n_blocks)]
        self.blocks = nn.ModuleList(ConvolutionBlock(dim, step, dropout) for step in steps)

    def forward(self, x: Tensor, present: Tensor, *, last: bool = False) -> Tensor:
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, dim); `present` is (B, L) bool."""
        mask = present[..., None].to(x.dtype)
        for block in self.blocks:
            x = block(x, mask)
        return x[:, -1] if last else x


class Attention(nn.Module):
    """Transformer blocks; `causal` or looking both ways."""

    def __init__(
        self, dim: int, n_blocks: int, n_heads: int, max_length: int, dropout: float, *, causal: bool = True
    ) -> None:
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(
            AttentionBlock(dim, n_heads, max_length, dropout, causal=causal) for _ in range(n_blocks)
        )

    def forward(self, x: Tensor, present: Tensor, *, last: bool = False) -> Tensor:
        """Map (B, L, dim) to (B, L, dim), with `last` to (B, dim); `present` is (B, L) bool."""
        return run_blocks(list(self.blocks), x, present, causal=self.causal, last=last)
