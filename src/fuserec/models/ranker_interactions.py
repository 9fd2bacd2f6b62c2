"""How a ranker joins a user, a candidate and the user's history: three modules of one signature.

    Joined           MLP on the concatenation (NeuMF; He et al. 2017)
    TargetAttention  the candidate looks at the history, then the same MLP (DIN; Zhou et al. 2018)
    Cross            cross network with low-rank weights (DCN-v2; Wang et al. 2021)

    user (N, D), items (N, C, D), features (N, C, D), past (N, L, D), present (N, L)  -->  (N, C, hidden)

`items` and `features` may have one row in place of N: then all users are asked about the same candidates, and what
depends on the candidate alone is computed once. A linear layer on a concatenation is written as a sum of linear
layers on its parts for the same reason.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuserec.models.attention import MASKED


class Joined(nn.Module):
    """relu(W [user; item; features; user * item] + b), and a second layer."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.user = nn.Linear(dim, hidden)
        self.item = nn.Linear(2 * dim, hidden, bias=False)
        self.product = nn.Linear(dim, hidden, bias=False)
        self.deep = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden), nn.ReLU())
        self.scale = dim**0.5  # the product of two unit vectors has entries of about 1 / dim

    def forward(self, user: Tensor, items: Tensor, features: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """As the module says; the history is not looked at beyond what the user vector holds of it."""
        joined: Tensor = self.deep(self.first_layer(user, items, features))
        return joined

    def first_layer(self, user: Tensor, items: Tensor, features: Tensor) -> Tensor:
        """Return the first layer before its activation, (N, C, hidden)."""
        product = user[:, None] * items * self.scale
        alone = self.item(torch.cat([items, features], dim=-1))
        first: Tensor = self.user(user)[:, None] + alone + self.product(product)
        return first


class TargetAttention(Joined):
    """As `Joined`, with what the history holds of the candidate, and its product with the candidate.

    The weights of the history are a softmax of scaled dot products with a bias for how long ago an item was consumed;
    DIN's own are an MLP without softmax, which costs as much for every pair as all of this module does.
    """

    def __init__(self, dim: int, hidden: int, dropout: float, n_heads: int, max_history: int) -> None:
        super().__init__(dim, hidden, dropout)
        self.n_heads = n_heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.age_bias = nn.Embedding(max_history, n_heads)
        nn.init.zeros_(self.age_bias.weight)
        self.attended = nn.Linear(2 * dim, hidden, bias=False)

    def forward(self, user: Tensor, items: Tensor, features: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """As the module says."""
        attended = self._attend(items, past, present)
        seen = self.attended(torch.cat([attended, attended * items * self.scale], dim=-1))
        joined: Tensor = self.deep(self.first_layer(user, items, features) + seen)
        return joined

    def _attend(self, items: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """Return (N, C, D): for each candidate a weighted mean of the history."""
        items, past = items * self.scale, past * self.scale
        query, key, value = self._split(self.query(items)), self._split(self.key(past)), self._split(self.value(past))
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        # Counted from the newest item, so that padding on the left changes nothing.
        length = past.shape[1]
        age = length - 1 - torch.arange(length, device=past.device)  # ONNX has no falling range of unknown length
        bias = self.age_bias(age).T[None, :, None, :] + torch.where(present, 0.0, MASKED)[:, None, None, :]
        weights = torch.softmax(logits + bias, dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(N, C, D) -> (N, heads, C, D / heads)."""
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.n_heads, dim // self.n_heads).transpose(1, 2)


class Cross(nn.Module):
    """x <- x0 * (U V x + b) + x, with x0 = [user; item; features], and a layer on what comes out."""

    def __init__(self, dim: int, hidden: int, dropout: float, n_layers: int, rank: int) -> None:
        super().__init__()
        width = 3 * dim
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(n_layers))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(n_layers))
        self.deep = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU())
        self.scale = dim**0.5  # entries of about 1, as a product of entries below 1 vanishes

    def forward(self, user: Tensor, items: Tensor, features: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """As the module says; the history is not looked at beyond what the user vector holds of it."""
        users = user[:, None].expand_as(items)
        features = features.expand_as(items)
        start = torch.cat([users, items, features], dim=-1) * self.scale
        x = start
        for down, up in zip(self.down, self.up, strict=True):
            x = start * up(down(x)) + x
        crossed: Tensor = self.deep(x)
        return crossed
