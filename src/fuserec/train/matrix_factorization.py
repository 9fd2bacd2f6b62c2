"""Trains matrix factorization by Bayesian personalized ranking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_at_least
from fuserec.models.matrix_factorization import MatrixFactorization, MatrixFactorizationConfig
from fuserec.train.data import DataSet
from fuserec.train.losses import bpr
from fuserec.train.negatives import consumption_keys, pairs_are_consumed
from fuserec.train.ragged import Ragged
from fuserec.train.retrieval import RetrievalTask, RetrieverRecipe, train_retriever
from fuserec.train.run import Run
from fuserec.train.split import Split


@dataclass(frozen=True)
class MatrixFactorizationRecipe(RetrieverRecipe):
    """Training options; the defaults were chosen by validation NDCG@10 on MovieLens-100K. A batch is of interactions.

    Attributes:
        n_negatives: items drawn for each interaction, uniformly.
        l2: weight of the squared lengths of the vectors of a batch, divided by its size (Rendle et al. 2009).
    """

    epochs: int = 60
    batch_size: int = 1024
    learning_rate: float = 5e-3
    weight_decay: float = 0.0
    warmup_steps: int = 0
    patience: int = 8
    n_negatives: int = 4
    l2: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "n_negatives")
        check_at_least(self, 0, "l2")
        self.config(n_users=1, n_items=1)

    def config(self, *, n_users: int, n_items: int) -> MatrixFactorizationConfig:
        """Return the architecture that these options give for tables of these sizes."""
        return MatrixFactorizationConfig(n_users, n_items, self.dim, self.max_history)


class PairBatch(NamedTuple):
    """Interactions: user rows (B,) and item rows (B,), int64."""

    user: Tensor
    item: Tensor


class PairLoader:
    """Iterates over all interactions once, in random order."""

    def __init__(self, sequences: Ragged, batch_size: int, seed: int) -> None:
        """Take what user row i + 1 consumed from row i of `sequences`."""
        self.users = torch.from_numpy(sequences.row_of_value + 1)
        self.items = torch.from_numpy(sequences.values)
        self.batch_size = batch_size
        self.generator = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[PairBatch]:
        order = torch.from_numpy(self.generator.permutation(self.users.numel()))
        for chosen in torch.split(order, self.batch_size):
            yield PairBatch(self.users[chosen], self.items[chosen])


class FactorTask(RetrievalTask[MatrixFactorization, MatrixFactorizationRecipe]):
    """What was consumed scores above what was not."""

    consumed: Tensor

    def __init__(self, model: MatrixFactorization, recipe: MatrixFactorizationRecipe, split: Split) -> None:
        super().__init__(model, recipe, split)
        self.register_buffer("consumed", consumption_keys(split.train, model.config.n_items))

    def batches(self) -> PairLoader:
        """The interactions of the training part."""
        return PairLoader(self.split.train, self.recipe.batch_size, self.recipe.seed)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Draw negatives and return the loss; a negative that the user consumed is left out."""
        tower, n_items = self.model.user_tower, self.model.config.n_items
        shape = (batch.user.numel(), self.recipe.n_negatives)
        drawn = torch.randint(1, n_items + 1, shape, device=batch.user.device)
        is_negative = ~pairs_are_consumed(self.consumed, batch.user[:, None], drawn, n_items)
        user, item, others = (
            tower.user_embedding(batch.user),
            tower.item_embedding(batch.item),
            tower.item_embedding(drawn),
        )
        positive = (user * item).sum(dim=-1)
        negative = (user[:, None] * others).sum(dim=-1)
        lengths = user.square().sum() + item.square().sum() + others.square().sum() / self.recipe.n_negatives
        loss: Tensor = bpr(positive[:, None], negative, is_negative) + self.recipe.l2 * lengths / (2 * shape[0])
        return loss


def train_matrix_factorization(dataset: DataSet, recipe: MatrixFactorizationRecipe, run: Run) -> Checkpoint:
    """Train a checkpoint of architecture "mf"; see `train_retriever`."""

    def build(split: Split) -> MatrixFactorization:
        return MatrixFactorization(recipe.config(n_users=split.user_ids.size, n_items=split.item_ids.size))

    return train_retriever("mf", dataset, recipe, build, FactorTask, run)
