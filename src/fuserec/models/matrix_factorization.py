"""Matrix factorization: a vector for every user and every item, compared by dot product (Koren et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuserec.models.checks import check_at_least
from fuserec.models.entries import Entries
from fuserec.models.retriever import PADDING, Retriever


@dataclass(frozen=True)
class MatrixFactorizationConfig:
    """Sizes; every field is a JSON number.

    Attributes:
        n_users: known users.
        n_items: items of the catalogue.
        dim: width of the vectors.
        max_history: items of the history from which an unknown user's vector is made.
        item_bias: whether the last column of the item vectors is a bias, which every user's vector takes with 1.
    """

    n_users: int
    n_items: int
    dim: int = 64
    max_history: int = 50
    item_bias: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_users", "n_items", "dim", "max_history")


class FactorTower(nn.Module):
    """Looks a user's vector up; an unknown user is the mean of the items they consumed."""

    def __init__(self, config: MatrixFactorizationConfig) -> None:
        super().__init__()
        self.item_bias = config.item_bias
        self.user_embedding = nn.Embedding(config.n_users + 1, config.dim, padding_idx=0)
        self.item_embedding = nn.Embedding(config.n_items + 1, config.dim, padding_idx=PADDING)
        for table in (self.user_embedding, self.item_embedding):
            nn.init.normal_(table.weight, std=0.1 * config.dim**-0.5)
            with torch.no_grad():
                table.weight[0].zero_()

    def forward(self, user: Tensor, history: Tensor) -> Tensor:
        """Encode users.

        Args:
            user: (B,) int64 user rows; 0 is the unknown user.
            history: (B, L) int64 item rows, left-padded with 0; read for unknown users alone.

        Returns:
            (B, dim) float32.
        """
        present = (history != PADDING).to(self.item_embedding.weight.dtype)
        consumed = present.sum(dim=1, keepdim=True).clamp(min=1)
        # As a product: ONNX Runtime's sum takes another order where there is one user, so its last bits would differ.
        pooled = (present[:, None] @ self.item_embedding(history))[:, 0] / consumed
        if self.item_bias:
            pooled = torch.cat([pooled[:, :-1], torch.ones_like(pooled[:, -1:])], dim=1)
        return torch.where((user == 0)[:, None], pooled, self.user_embedding(user))


class MatrixFactorization(Retriever):
    """Both tables."""

    entries = {
        "user_tower.user_embedding.weight": Entries("users"),
        "user_tower.item_embedding.weight": Entries("items"),
    }
    user_tower: FactorTower

    def __init__(self, config: MatrixFactorizationConfig) -> None:
        super().__init__()
        self.config = config
        self.user_tower = FactorTower(config)

    def encode_items(self, rows: Tensor) -> Tensor:
        """Look items up: (N,) int64 in 1..n_items -> (N, dim) float32."""
        vectors: Tensor = self.user_tower.item_embedding(rows)
        return vectors
