"""Deep rankers: a score for a user and each of a few hundred candidates, over the embeddings of a retriever.

    user, history --> user tower --> user vector --+--------------------------> dot product (next item)
                                                   |                                 |
    candidates ----> item tower --> item vectors --+--> interaction --> heads: click + affinity, rating

The family differs in the interaction alone (`ranker_interactions`). The affinity, the dot product over the
temperature, is added to the click logit: the deep part learns what the dot product misses (wide and deep; Cheng et
al. 2016).
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from fuserec.models.checks import check_at_least, check_layers
from fuserec.models.encoders import Recurrence
from fuserec.models.ranker_interactions import Cross, Joined, TargetAttention
from fuserec.models.retriever import PADDING, Retriever
from fuserec.models.two_tower import ItemFeatures, ItemTower, TwoTower, TwoTowerConfig, UserTower

TASKS: Final = ("next-item", "click", "rating")
HEADS: Final = ("click", "rating")


def parse_tasks(text: str) -> tuple[str, ...]:
    """Split "next-item,click" into task names.

    Raises:
        ValueError: if a name is unknown or repeated, or none of them is what a ranker says of a candidate.
    """
    tasks = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in tasks if name not in TASKS]
    if unknown:
        raise ValueError(f"tasks names {', '.join(map(repr, unknown))}; expected some of {', '.join(TASKS)}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks is {text!r}; expected each name once")
    if not set(tasks) & set(HEADS):
        raise ValueError(f"tasks is {text!r}; expected {' or '.join(HEADS)} among them, which is what a ranker says")
    return tasks


@dataclass(frozen=True)
class RankerConfig(TwoTowerConfig):
    """Sizes of a ranker; every field is a JSON value. `n_blocks` counts recurrent layers over the history.

    Attributes:
        hidden: width of the layers on a user and a candidate.
        n_crosses: layers of a cross network.
        cross_rank: rank of the weights of a cross network.
        temperature: divides the cosine of user and item vector.
        tasks: what was trained, separated by commas: next-item, click, rating.
    """

    hidden: int = 64
    n_crosses: int = 2
    cross_rank: int = 32
    temperature: float = 0.1
    tasks: str = "next-item,click"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "hidden", "n_crosses", "cross_rank")
        check_layers(self, "n_crosses")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")
        parse_tasks(self.tasks)


class RecurrentUserTower(UserTower):
    """A user tower whose history is read by GRU cells, which rank best on short catalogues."""

    @staticmethod
    def build_blocks(config: TwoTowerConfig) -> nn.ModuleList:
        """Recurrent layers; they see no later position, so the mask has nothing to tell them."""
        return nn.ModuleList([Recurrence(nn.GRU, config.dim, config.n_blocks, config.dropout)])


class RankTower(nn.Module):
    """Scores candidates; owns both towers, so that a graph of it is complete.

    Attributes:
        rating_mean: () float32, of the training ratings; the rating head starts from it.
        rating_scale: () float32, their standard deviation.
    """

    rating_mean: Tensor
    rating_scale: Tensor

    def __init__(self, config: RankerConfig, interaction: nn.Module) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.item_features = ItemFeatures(config)
        self.user_tower = RecurrentUserTower(config)
        self.item_tower = ItemTower(config)
        self.interaction = interaction
        self.heads = nn.Linear(config.hidden, len(HEADS))
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)
        self.register_buffer("rating_mean", torch.tensor(0.0))
        self.register_buffer("rating_scale", torch.tensor(1.0))

    def forward(self, user: Tensor, history: Tensor, candidates: Tensor) -> Tensor:
        """Score candidates.

        Args:
            user: (B,) int64 user rows; 0 is the unknown user.
            history: (B, L) int64 item rows, left-padded with 0, most recent last; 1 <= L <= max_history.
            candidates: (B, C) int64 item rows; 0 is padding, whose scores mean nothing.

        Returns:
            (B, C, 2) float32: the click logit, and the rating in the units of the data. A candidate's do not depend
            on the other candidates, nor on the amount of padding.
        """
        items, features = self.describe(candidates)
        past, _ = self.describe(history)
        return self.score(self.user_tower(user, history), items, features, past, history != PADDING)

    def describe(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return item vectors and vectors of item features, (..., D) float32 each, for item rows (...) int64."""
        table, flat = self.item_features, rows.reshape(-1)
        genres, words, years = table.genres[flat], table.words[flat], table.years[flat]
        vectors = self.item_tower(self.user_tower.item_embedding(flat), genres, words, years)
        features = self.item_tower.describe(genres, words, years)
        shape = (*rows.shape, vectors.shape[-1])
        return vectors.reshape(shape), features.reshape(shape)

    def score(self, user: Tensor, items: Tensor, features: Tensor, past: Tensor, present: Tensor) -> Tensor:
        """Return what `forward` does, given vectors: the arguments of an interaction (`ranker_interactions`)."""
        heads = self.heads(self.interaction(user, items, features, past, present))
        affinity = (items @ user[:, :, None])[..., 0] / self.temperature
        click = heads[..., 0] + affinity
        rating = self.rating_mean + self.rating_scale * heads[..., 1]
        return torch.stack([click, rating], dim=-1)


class Ranker(Retriever):
    """A rank tower; its user and item tower make it a retriever too."""

    entries = {f"rank_tower.{name}": entries for name, entries in TwoTower.entries.items()}
    config: RankerConfig

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.rank_tower = RankTower(config, self.build_interaction(config))

    @staticmethod
    @abc.abstractmethod
    def build_interaction(config: RankerConfig) -> nn.Module:
        """Return the interaction of the architecture."""

    # Registered once, in the rank tower: a tensor under two names cannot be saved.
    @property
    def user_tower(self) -> RecurrentUserTower:  # type: ignore[override]  # never assigned
        """The tower of users."""
        return self.rank_tower.user_tower

    @property
    def heads(self) -> tuple[str, ...]:
        """The trained ones among "click" and "rating"; the first of them is what candidates are ordered by."""
        return tuple(head for head in HEADS if head in parse_tasks(self.config.tasks))

    def encode_items(self, rows: Tensor) -> Tensor:
        """Encode items given by row: (N,) int64 in 1..n_items -> (N, dim) float32 unit vectors."""
        return self.rank_tower.describe(rows)[0]

    def positions(self, user: Tensor, history: Tensor) -> Tensor:
        """As `Retriever.positions`."""
        return self.user_tower.all_positions(user, history)


class MLPRanker(Ranker):
    """User vector, item vector, their product and item features into an MLP."""

    @staticmethod
    def build_interaction(config: RankerConfig) -> nn.Module:
        """An MLP."""
        return Joined(config.dim, config.hidden, config.dropout)


class AttentionRanker(Ranker):
    """As `MLPRanker`, with what the history holds of the candidate."""

    @staticmethod
    def build_interaction(config: RankerConfig) -> nn.Module:
        """Target attention."""
        return TargetAttention(config.dim, config.hidden, config.dropout, config.n_heads, config.max_history)


class CrossRanker(Ranker):
    """Explicit products of user vector, item vector and item features."""

    @staticmethod
    def build_interaction(config: RankerConfig) -> nn.Module:
        """A cross network."""
        return Cross(config.dim, config.hidden, config.dropout, config.n_crosses, config.cross_rank)
