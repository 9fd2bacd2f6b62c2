"""Trains the contrastive two-tower on every prefix of every user's sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_at_least, check_choice, check_probability
from fuserec.models.two_tower import TwoTower, TwoTowerConfig
from fuserec.train.contrast import LOSSES, Contrast, among_each_other, beside_candidates, contrast_loss, hardest
from fuserec.train.data import DataSet
from fuserec.train.features import WORDS_PER_ITEM, CatalogueFeatures, build_features
from fuserec.train.negatives import (
    KINDS,
    OF_THE_BATCH,
    consumption_keys,
    draw,
    is_consumed,
    log_draw_probability,
    log_sampling_probability,
    long_tail_weights,
)
from fuserec.train.retrieval import train_retriever
from fuserec.train.robust import RobustRecipe, RobustTask
from fuserec.train.run import Run
from fuserec.train.split import Split
from fuserec.train.windows import WindowBatch


@dataclass(frozen=True)
class TwoTowerRecipe(RobustRecipe):
    """Training options; the defaults were chosen by validation NDCG@10 on MovieLens-100K.

    A batch is of sequence windows; each gives up to `max_history` examples, all of which meet the same candidates.

    Attributes:
        loss: one of `contrast.LOSSES`: "info-nce", "softmax", "bpr" or "margin".
        negatives: one of `negatives.KINDS`: "in-batch", "uniform", "popularity", "hard", "mixed" or "catalogue".
        n_negatives: candidates drawn for a batch, where they are drawn.
        n_hard: how many of them are kept for an example, if `negatives` is "hard".
        temperature: divides the cosine in all losses but "margin".
        margin: by how much the cosine of what was chosen should exceed that of a negative, if `loss` is "margin".
        long_tail: 0 weighs examples alike, 1 items alike: an example counts by its item's count to the power of
            -long_tail.
        n_heads: attention heads; divides `dim`.
        n_blocks: attention blocks.
        dropout: of activations.
        user_dropout: how often the user id is hidden, so that the model also serves users it has never seen.
    """

    loss: str = "info-nce"
    negatives: str = "in-batch"
    n_negatives: int = 512
    n_hard: int = 32
    temperature: float = 0.1
    margin: float = 0.3
    long_tail: float = 0.0
    n_heads: int = 2
    n_blocks: int = 1
    dropout: float = 0.2
    user_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "loss", LOSSES)
        check_choice(self, "negatives", KINDS)
        if (self.loss, self.negatives) == ("softmax", "hard"):
            raise ValueError(
                "loss is 'softmax' with negatives 'hard'; expected negatives that estimate the catalogue, and the "
                "hardest of a draw do not: take loss 'info-nce'"
            )
        check_at_least(self, 1, "n_negatives", "n_hard")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")
        check_at_least(self, 0, "margin")
        check_probability(self, "long_tail")
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


class TwoTowerTask(RobustTask[TwoTower, TwoTowerRecipe]):
    """Each position of a window is told its next item from candidates that all positions of the batch share."""

    log_q: Tensor
    consumed: Tensor
    weights: Tensor

    def __init__(self, model: TwoTower, recipe: TwoTowerRecipe, split: Split) -> None:
        super().__init__(model, recipe, split)
        rows, n_items = split.train.values, model.config.n_items
        self.register_buffer("log_q", log_sampling_probability(rows, n_items))
        self.register_buffer("consumed", consumption_keys(split.train, n_items))
        self.register_buffer("weights", long_tail_weights(rows, n_items, recipe.long_tail))

    def forward(self, batch: WindowBatch) -> Tensor:
        """Return the loss over all examples of the batch."""
        recipe = self.recipe
        rows = batch.target[batch.target != 0]
        weight = self.weights[rows] if recipe.long_tail else None
        contrast = self.contrast(batch)
        return contrast_loss(recipe.loss, contrast, temperature=recipe.temperature, margin=recipe.margin, weight=weight)

    def contrast(self, batch: WindowBatch) -> Contrast:
        """Compare every example of the batch with what it chose and with candidates.

        What a user consumed at another time is no negative of theirs: it is either excluded when the model serves, or
        itself a positive a few positions on. On MovieLens-100K this lifts the validation NDCG@10 from 0.133 to 0.140.
        """
        kind = self.recipe.negatives
        positions = batch.target != 0
        users = self.model.user_tower.all_positions(batch.user, batch.history)[positions]
        own = batch.target[positions]
        drawn = draw(kind, self.recipe.n_negatives, self.log_q)
        rows = torch.cat([own, drawn])
        # Popular items stand in a batch many times; each is encoded once.
        unique, place = torch.unique(rows, return_inverse=True)
        # A look-up as an embedding, whose gradient is summed in a fixed order, unlike indexing's.
        items = torch.nn.functional.embedding(place, self.model.encode_items(unique))
        consumed = is_consumed(self.consumed, batch.user, unique, self.model.config.n_items)
        # Back from one row a user and one column an item to one row an example and one column a candidate.
        window = positions.nonzero()[:, 0]
        is_negative = ~consumed[window].index_select(1, place)
        log_q = log_draw_probability(kind, rows, self.log_q, own.numel(), drawn.numel())
        if kind in OF_THE_BATCH:
            return among_each_other(users, items, is_negative, log_q)
        contrast = beside_candidates(users, items, is_negative, log_q)
        return hardest(contrast, self.recipe.n_hard) if kind == "hard" else contrast


def build_two_tower(recipe: TwoTowerRecipe, split: Split, features: CatalogueFeatures) -> TwoTower:
    """Return the untrained model for a split, with the features of its catalogue."""
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
