"""The contrastive two-tower: a user tower over id and history, an item tower over id, genres, title and year.

    user, history --> UserTower --> unit vector --+
                                                  +-- dot product = cosine similarity
    item row -------> ItemTower --> unit vector --+

Users and items are rows, not ids: row 0 is the unknown user and the padding of a history, row r >= 1 is line r - 1
of the checkpoint's `users.parquet` or `items.parquet`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuserec.models.attention import AttentionBlock, run_blocks
from fuserec.models.checks import check_at_least, check_heads, check_layers, check_share
from fuserec.models.entries import COMPUTED, Entries
from fuserec.models.retriever import PADDING, Retriever, unit_vectors


@dataclass(frozen=True)
class TwoTowerConfig:
    """Sizes of a two-tower; every field is a JSON number.

    Attributes:
        n_users: known users; the table has one row more, for the unknown user.
        n_items: items of the catalogue; the table has one row more, for padding.
        dim: width of the vectors both towers return, and of everything inside them.
        max_history: longest history the user tower accepts.
        n_genres: size of the genre vocabulary; 0 if no item has a genre.
        n_words: size of the title-word vocabulary, not counting "no word".
        n_years: number of year buckets, not counting "year unknown".
        words_per_item: width of the title-word table.
        n_heads: attention heads; divides `dim`.
        n_blocks: attention blocks over the history.
        dropout: probability of dropping an activation while training.
        user_dropout: probability of hiding the user's id while training; what remains is the unknown user.
    """

    n_users: int
    n_items: int
    dim: int = 64
    max_history: int = 50
    n_genres: int = 0
    n_words: int = 0
    n_years: int = 0
    words_per_item: int = 8
    n_heads: int = 2
    n_blocks: int = 1
    dropout: float = 0.2
    user_dropout: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_items", "dim", "max_history", "words_per_item", "n_heads", "n_blocks")
        check_layers(self, "n_blocks")
        check_at_least(self, 0, "n_users", "n_genres", "n_words", "n_years")
        check_share(self, "dropout", "user_dropout")
        check_heads(self.dim, self.n_heads)


class ItemFeatures(nn.Module):
    """What is known of each item besides its id, kept as buffers so that it travels with the weights.

    Attributes:
        genres: (n_items + 1, n_genres) float32, rows summing to 1, or to 0 where nothing is known.
        words: (n_items + 1, words_per_item) int64 in 0..n_words; 0 is "no word".
        years: (n_items + 1,) int64 in 0..n_years; 0 is "year unknown".
    """

    genres: Tensor
    words: Tensor
    years: Tensor

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        rows = config.n_items + 1
        self.register_buffer("genres", torch.zeros(rows, config.n_genres))
        self.register_buffer("words", torch.zeros(rows, config.words_per_item, dtype=torch.int64))
        self.register_buffer("years", torch.zeros(rows, dtype=torch.int64))


class UserTower(nn.Module):
    """Reads a user and the items they consumed, most recent last."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.user_dropout = config.user_dropout
        self.item_embedding = nn.Embedding(config.n_items + 1, dim, padding_idx=PADDING)
        self.user_embedding = nn.Embedding(config.n_users + 1, dim)
        nn.init.normal_(self.item_embedding.weight, std=dim**-0.5)
        nn.init.normal_(self.user_embedding.weight, std=0.1 * dim**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[PADDING].zero_()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = self.build_blocks(config)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    @staticmethod
    def build_blocks(config: TwoTowerConfig) -> nn.ModuleList:
        """Return what reads the history: called as `run_blocks` calls them."""
        return nn.ModuleList(
            AttentionBlock(config.dim, config.n_heads, config.max_history, config.dropout)
            for _ in range(config.n_blocks)
        )

    def forward(self, user: Tensor, history: Tensor) -> Tensor:
        """Encode users.

        Args:
            user: (B,) int64 user rows; 0 is the unknown user.
            history: (B, L) int64 item rows, left-padded with 0, most recent last; 1 <= L <= max_history.

        Returns:
            (B, dim) float32 unit vectors, independent of the amount of padding.
        """
        return self._head(user, self._read(history, last=True))

    def all_positions(self, user: Tensor, history: Tensor) -> Tensor:
        """Encode every prefix of each history at once, as training needs it: (B,), (B, L) -> (B, L, dim)."""
        if self.training:
            hidden = torch.rand(history.shape, device=user.device) < self.user_dropout
            user = torch.where(hidden, PADDING, user[:, None])
        else:
            user = user[:, None]
        return self._head(user, self._read(history))

    def _read(self, history: Tensor, *, last: bool = False) -> Tensor:
        x = self.dropout(self.item_embedding(history))
        return run_blocks(list(self.blocks), x, history > PADDING, last=last)

    def _head(self, user: Tensor, x: Tensor) -> Tensor:
        x = self.norm(x + self.user_embedding(user))
        return unit_vectors(x + self.head(x))


class ItemTower(nn.Module):
    """Adds genres, title words and year to an item's id vector."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.genre = nn.Linear(config.n_genres, dim, bias=False) if config.n_genres else None
        self.word = nn.Embedding(config.n_words + 1, dim, padding_idx=0)
        self.year = nn.Embedding(config.n_years + 1, dim)
        for table in (self.word, self.year):
            nn.init.normal_(table.weight, std=0.1 * dim**-0.5)
        with torch.no_grad():
            self.word.weight[0].zero_()
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, id_vectors: Tensor, genres: Tensor, words: Tensor, years: Tensor) -> Tensor:
        """Encode N items.

        Args:
            id_vectors: (N, dim) float32, rows of the id table shared with the user tower.
            genres: (N, n_genres) float32.
            words: (N, words_per_item) int64.
            years: (N,) int64.

        Returns:
            (N, dim) float32 unit vectors.
        """
        x = id_vectors
        for part in self._parts(genres, words, years):
            x = x + part
        x = self.norm(self.dropout(x))
        return unit_vectors(x + self.head(x))

    def describe(self, genres: Tensor, words: Tensor, years: Tensor) -> Tensor:
        """Return what is known of N items besides their ids, (N, dim) float32."""
        return torch.stack(self._parts(genres, words, years)).sum(dim=0)

    def _parts(self, genres: Tensor, words: Tensor, years: Tensor) -> list[Tensor]:
        n_words = (words != 0).sum(dim=1, keepdim=True).clamp(min=1)
        parts = [self.word(words).sum(dim=1) / n_words, self.year(years)]
        return parts if self.genre is None else [*parts, self.genre(genres)]


class TwoTower(Retriever):
    """Both towers, their shared table of item ids, and the item features."""

    entries = {
        "user_tower.item_embedding.weight": Entries("items"),
        "user_tower.user_embedding.weight": Entries("users"),
        "item_tower.genre.weight": Entries("genres", axis=1, leading=0),
        "item_tower.word.weight": Entries("words"),
        "item_tower.year.weight": Entries("years"),
        "item_features.genres": COMPUTED,
        "item_features.words": COMPUTED,
        "item_features.years": COMPUTED,
    }
    user_tower: UserTower

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.item_features = ItemFeatures(config)
        self.user_tower = UserTower(config)
        self.item_tower = ItemTower(config)

    def encode_items(self, rows: Tensor) -> Tensor:
        """Encode items given by row: (N,) int64 in 1..n_items -> (N, dim) float32 unit vectors."""
        features = self.item_features
        ids = self.user_tower.item_embedding(rows)
        vectors: Tensor = self.item_tower(ids, features.genres[rows], features.words[rows], features.years[rows])
        return vectors

    def positions(self, user: Tensor, history: Tensor) -> Tensor:
        """As `Retriever.positions`."""
        return self.user_tower.all_positions(user, history)
