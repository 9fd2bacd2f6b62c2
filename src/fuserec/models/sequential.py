"""Sequential recommenders: what a user did last tells what comes next, and item vectors are the table they are read by.

    history --> item table --> encoder --> norm --> state of the last position --+
                    |                                                            +-- dot product
                    +----------------------- item vectors -----------------------+

The five architectures differ in the encoder alone. None of them knows who the user is.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuserec.models.checks import check_at_least, check_heads, check_layers, check_share
from fuserec.models.encoders import Attention, Convolution, Recurrence
from fuserec.models.entries import Entries
from fuserec.models.retriever import PADDING, Retriever


@dataclass(frozen=True)
class SequentialConfig:
    """Sizes of a sequential recommender; every field is a JSON number.

    Attributes:
        n_items: items of the catalogue; the table has one row more, for padding.
        dim: width of the vectors.
        max_history: longest history the encoder accepts.
        n_blocks: layers of the encoder.
        n_heads: attention heads, where there is attention; divides `dim`.
        dropout: probability of dropping an activation while training.
    """

    n_items: int
    dim: int = 64
    max_history: int = 50
    n_blocks: int = 2
    n_heads: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_items", "dim", "max_history", "n_blocks", "n_heads")
        check_layers(self, "n_blocks")
        check_share(self, "dropout")
        check_heads(self.dim, self.n_heads)


class SequenceTower(nn.Module):
    """Reads the items a user consumed, most recent last."""

    extra_rows = 0

    def __init__(self, config: SequentialConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.n_items = config.n_items
        self.item_embedding = nn.Embedding(config.n_items + 1 + self.extra_rows, config.dim, padding_idx=PADDING)
        nn.init.normal_(self.item_embedding.weight, std=config.dim**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[PADDING].zero_()
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = encoder
        self.norm: nn.Module = nn.LayerNorm(config.dim)

    def forward(self, user: Tensor, history: Tensor) -> Tensor:
        """Encode users by their histories.

        Args:
            user: (B,) int64, for the sake of the interface: who it is makes no difference.
            history: (B, L) int64 item rows, left-padded with 0, most recent last; 1 <= L <= max_history.

        Returns:
            (B, dim) float32, independent of the amount of padding.
        """
        return self._read(history, last=True)

    def all_positions(self, history: Tensor) -> Tensor:
        """Encode every position of each history, (B, L) -> (B, L, dim)."""
        return self._read(history)

    def _read(self, history: Tensor, *, last: bool = False) -> Tensor:
        x = self.dropout(self.item_embedding(history))
        states: Tensor = self.norm(self.encoder(x, history > PADDING, last=last))
        return states

    def item_table(self) -> Tensor:
        """Return the vectors of the items that states are compared with, (n_items, dim) float32."""
        return self.item_embedding.weight[1 : self.n_items + 1]


class MaskedTower(SequenceTower):
    """BERT4Rec (Sun et al. 2019): a mask stands where the next item will be; all of the history tells what it is."""

    extra_rows = 1

    def forward(self, user: Tensor, history: Tensor) -> Tensor:
        """As `SequenceTower.forward`."""
        masked = torch.cat([history, torch.full_like(history[:, :1], self.mask_row)], dim=1)
        return self._read(masked, last=True)

    @property
    def mask_row(self) -> int:
        """The row that stands for an item to be guessed."""
        return self.n_items + 1


class Sequential(Retriever):
    """A sequence tower; the item vectors are its own table."""

    entries = {"user_tower.item_embedding.weight": Entries("items")}
    user_tower: SequenceTower

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        self.config = config
        self.user_tower = self.build_tower(config)

    @staticmethod
    @abc.abstractmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """Return the tower of the architecture."""

    def encode_items(self, rows: Tensor) -> Tensor:
        """Look items up: (N,) int64 in 1..n_items -> (N, dim) float32."""
        return nn.functional.embedding(rows, self.user_tower.item_embedding.weight)

    def positions(self, user: Tensor, history: Tensor) -> Tensor:
        """As `Retriever.positions`."""
        return self.user_tower.all_positions(history)


class SASRec(Sequential):
    """Self-attentive recommendation (Kang and McAuley 2018), with relative in place of absolute positions."""

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """Causal attention."""
        encoder = Attention(config.dim, config.n_blocks, config.n_heads, config.max_history, config.dropout)
        return SequenceTower(config, encoder)


class GRU4Rec(Sequential):
    """Recurrent recommendation (Hidasi et al. 2016; Tan et al. 2016)."""

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """GRU cells."""
        return SequenceTower(config, Recurrence(nn.GRU, config.dim, config.n_blocks, config.dropout))


class LSTMRec(Sequential):
    """As `GRU4Rec`, with LSTM cells (Hochreiter and Schmidhuber 1997)."""

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """LSTM cells."""
        return SequenceTower(config, Recurrence(nn.LSTM, config.dim, config.n_blocks, config.dropout))


class NextItNet(Sequential):
    """Dilated causal convolutions (Yuan et al. 2019)."""

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """Convolutions."""
        return SequenceTower(config, Convolution(config.dim, config.n_blocks, config.dropout))


class BERT4Rec(Sequential):
    """Attention that looks both ways, trained to guess masked items (Sun et al. 2019)."""

    user_tower: MaskedTower

    def positions(self, user: Tensor, history: Tensor) -> Tensor:
        """As `Retriever.positions`: a tower that looks both ways reads the prefixes one by one."""
        return Retriever.positions(self, user, history)

    @staticmethod
    def build_tower(config: SequentialConfig) -> SequenceTower:
        """Attention both ways, over the history and the mask."""
        size = config.max_history + 1
        encoder = Attention(config.dim, config.n_blocks, config.n_heads, size, config.dropout, causal=False)
        return MaskedTower(config, encoder)
