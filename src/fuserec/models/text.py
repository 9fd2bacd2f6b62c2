"""The text interest model: items are what their text says, users are what they read last.

    texts --> TextEncoder --> item vectors, a table --+-------------------------------+
                                                      v                               +-- dot product = cosine
    history ------------------> rows of the table --> causal attention --> user vector +
    any text --> TextEncoder ---------------------------------------------> query vector

No item and no user has a vector of its own, so an item never seen in training is found by its text, and a text stands
in for a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from fuserec.models.checks import check_at_least, check_choice, check_heads, check_layers, check_share
from fuserec.models.encoders import Attention
from fuserec.models.entries import COMPUTED
from fuserec.models.retriever import PADDING, Retriever, unit_vectors
from fuserec.models.text_encoder import POOLINGS, TextEncoder, transformer_config

TEXTS_AT_ONCE: Final = 64


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text interest model; every field is a JSON value.

    Attributes:
        n_items: items of the catalogue; the tables have one row more, for padding.
        encoder: the transformer's configuration, JSON.
        dim: width of the vectors.
        max_history: longest history the user tower accepts.
        max_tokens: tokens that a text is cut to.
        n_blocks: attention blocks over the history; with 0 a user is the mean of what they consumed.
        n_heads: attention heads over the history; divides `dim`.
        dropout: probability of dropping an activation of the user tower while training.
        adapter: width of the adapters in the transformer; 0 for none.
        pooling: how the states of a text's tokens become one: mean, cls (the first token's) or max.
        query_prompt: what stands before a text that is asked for.
        document_prompt: what stands before the text of an item.
    """

    n_items: int
    encoder: str
    dim: int = 384
    max_history: int = 50
    max_tokens: int = 64
    n_blocks: int = 1
    n_heads: int = 2
    dropout: float = 0.2
    adapter: int = 0
    pooling: str = "mean"
    query_prompt: str = ""
    document_prompt: str = ""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_items", "dim", "max_history", "max_tokens", "n_heads")
        check_at_least(self, 0, "n_blocks", "adapter")
        check_layers(self, "n_blocks")
        check_share(self, "dropout")
        check_heads(self.dim, self.n_heads)
        check_choice(self, "pooling", POOLINGS)
        transformer_config(self.encoder)


class TextTower(nn.Module):
    """Reads the vectors of what a user consumed, most recent last.

    Attributes:
        item_table: (n_items + 1, dim) float32, what `TextRetriever.refresh` wrote; row 0 is padding.
    """

    item_table: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.register_buffer("item_table", torch.zeros(config.n_items + 1, config.dim))
        self.dropout = nn.Dropout(config.dropout)
        sizes = (config.dim, config.n_blocks, config.n_heads, config.max_history, config.dropout)
        self.blocks = Attention(*sizes) if config.n_blocks else None

    def forward(self, user: Tensor, history: Tensor) -> Tensor:
        """Encode users by their histories.

        Args:
            user: (B,) int64, for the sake of the interface: who it is makes no difference.
            history: (B, L) int64 item rows, left-padded with 0, most recent last; 1 <= L <= max_history.

        Returns:
            (B, dim) float32 unit vectors, independent of the amount of padding.
        """
        return self.read(nn.functional.embedding(history, self.item_table), history > PADDING, last=True)

    def read(self, x: Tensor, present: Tensor, *, last: bool = False) -> Tensor:
        """Encode every position: (B, L, dim) item vectors, zero where not `present` (B, L) -> (B, L, dim) unit vectors.

        With `last`, (B, dim) of the last position. The mean of what came before, corrected by what attention makes of
        it: untrained, a user is that mean.
        """
        counts = present.cumsum(dim=1).clamp(min=1)[..., None]
        state = x.cumsum(dim=1) / counts
        if last:
            state = state[:, -1]  # not a plain sum: ONNX Runtime adds that up in another order if B is 1
        if self.blocks is not None:
            state = state + self.blocks(self.dropout(x), present, last=last)
        return unit_vectors(state)


class TextRetriever(Retriever):
    """The text encoder, the tokens of the catalogue, and the user tower.

    Attributes:
        tokens: (n_items + 1, max_tokens) int64, the texts of the items; row 0 is padding.
    """

    entries = {"tokens": COMPUTED, "user_tower.item_table": COMPUTED}
    config: TextConfig
    tokens: Tensor
    user_tower: TextTower

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TextEncoder(config.encoder, config.dim, config.adapter, config.pooling)
        tokens = torch.full((config.n_items + 1, config.max_tokens), self.encoder.pad_id)
        self.register_buffer("tokens", tokens)
        self.user_tower = TextTower(config)

    def encode_items(self, rows: Tensor) -> Tensor:
        """Encode items given by row: (N,) int64 in 1..n_items -> (N, dim) float32 unit vectors."""
        return self.encoder.project(self.pool_items(rows))

    def pool_items(self, rows: Tensor) -> Tensor:
        """Return the states that vectors are projected from: (N,) int64 in 1..n_items -> (N, hidden size).

        Texts of like length are encoded together, so that little work goes into padding.
        """
        tokens = self.tokens[rows]
        lengths = (tokens != self.encoder.pad_id).sum(dim=1)
        order = lengths.argsort(stable=True)
        pooled = [
            self.encoder.pool(tokens[chunk, : max(1, int(lengths[chunk[-1]]))])
            for chunk in torch.split(order, TEXTS_AT_ONCE)
        ]
        return torch.cat(pooled)[order.argsort()]

    def item_vectors(self) -> Tensor:
        """Return what `refresh` wrote: the vectors that the user tower reads histories by, (n_items, dim) float32."""
        return self.user_tower.item_table[1:].clone()

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the vectors of the catalogue into the user tower's table, as the encoder sees it now."""
        self.user_tower.item_table[1:] = super().item_vectors()

    def positions(self, user: Tensor, history: Tensor) -> Tensor:
        """As `Retriever.positions`."""
        return self.user_tower.read(nn.functional.embedding(history, self.user_tower.item_table), history != PADDING)
