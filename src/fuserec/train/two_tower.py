"""Trains the contrastive two-tower on every prefix of every user's sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.two_tower import TwoTower, TwoTowerConfig
from fuserec.train.data import DataSet
from fuserec.train.features import WORDS_PER_ITEM, CatalogueFeatures, build_features
from fuserec.train.losses import info_nce
from fuserec.train.negatives import consumption_keys, is_consumed, log_sampling_probability
from fuserec.train.retrieval import RetrievalTask, RetrieverRecipe, train_retriever
from fuserec.train.run import Run
from fuserec.train.split import Split
from fuserec.train.windows import WindowBatch


@dataclass(frozen=True)
class TwoTowerRecipe(RetrieverRecipe):
    """Training options; the defaults were chosen by validation NDCG@10 on MovieLens-100K.

    A batch is of sequence windows; each gives up to `max_history` examples, all negatives of one another.

    Attributes:
        temperature: divides the cosine in InfoNCE.
        n_heads: attention heads; divides `dim`.
        n_blocks: attention blocks.
        dropout: of activations.
        user_dropout: how often the user id is hidden, so that the model also serves users it has never seen.
    """

    temperature: float = 0.1
    n_heads: int = 2
    n_blocks: int = 1
    dropout: float = 0.2
    user_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")
        self.config(n_users=1, n_items=1)  # checks the options of the architecture

    def config(
        self, *, n_users: int, n_items: int, n_genres: int = 0, n_words: int = 0, n_years: int = 0
    ) -> TwoTowerConfig:
        """Return the architecture that these options give for vocabularies of these sizes."""
        return TwoTowerConfig(
            n_users=n_users,
            n_items=n_items,
            dim=self.dim,
            max_history=self.max_history,
            n_genres=n_genres,
            n_words=n_words,
            n_years=n_years,
            words_per_item=WORDS_PER_ITEM,
            n_heads=self.n_heads,
            n_blocks=self.n_blocks,
            dropout=self.dropout,
            user_dropout=self.user_dropout,
        )


def train_two_tower(dataset: DataSet, recipe: TwoTowerRecipe, run: Run) -> Checkpoint:
    """Train a checkpoint of architecture "two-tower"; see `train_retriever`."""
    features = build_features(dataset.items)

    def build(split: Split) -> TwoTower:
        return build_two_tower(recipe, split, features)

    return train_retriever("two-tower", dataset, recipe, build, TwoTowerTask, run)


class TwoTowerTask(RetrievalTask[TwoTower, TwoTowerRecipe]):
    """Each position of a window is told its next item from those of all other positions of the batch."""

    log_q: Tensor
    consumed: Tensor

    def __init__(self, model: TwoTower, recipe: TwoTowerRecipe, split: Split) -> None:
        super().__init__(model, recipe, split)
        self.register_buffer("log_q", log_sampling_probability(split.train.values, model.config.n_items))
        self.register_buffer("consumed", consumption_keys(split.train, model.config.n_items))

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """InfoNCE over all examples of the batch.

        What a user consumed at another time is no negative of theirs: it is either excluded when the model serves, or
        itself a positive a few positions on. On MovieLens-100K this lifts the validation NDCG@10 from 0.133 to 0.140.
        """
        positions = batch.target != 0
        users = self.model.user_tower.all_positions(batch.user, batch.history)[positions]
        rows = batch.target[positions]
        # Popular items stand in a batch many times; each is encoded once.
        unique, position = torch.unique(rows, return_inverse=True)
        # A look-up as an embedding, whose gradient is summed in a fixed order, unlike indexing's.
        items = torch.nn.functional.embedding(position, self.model.encode_items(unique))
        consumed = is_consumed(self.consumed, batch.user, unique, self.model.config.n_items)
        # Back from one row a user and one column an item to one of each an example.
        window = positions.nonzero()[:, 0]
        consumed = consumed[window].index_select(1, position)
        return info_nce(users, items, self.log_q[rows], rows, self.recipe.temperature, not_negative=consumed)


def build_two_tower(recipe: TwoTowerRecipe, split: Split, features: CatalogueFeatures) -> TwoTower:
    """Return the untrained model that the options give for the users, the items and their features."""
    model = TwoTower(
        recipe.config(
            n_users=split.user_ids.size,
            n_items=split.item_ids.size,
            n_genres=features.n_genres,
            n_words=features.n_words,
            n_years=features.n_years,
        )
    )
    model.item_features.genres.copy_(features.genres)
    model.item_features.words.copy_(features.words)
    model.item_features.years.copy_(features.years)
    return model
