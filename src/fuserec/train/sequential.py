"""Trains the sequential recommenders: the next item at every position, or masked items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_share
from fuserec.models.sequential import BERT4Rec, MaskedTower, Sequential, SequentialConfig
from fuserec.train.data import DataSet
from fuserec.train.retrieval import train_retriever
from fuserec.train.robust import RobustRecipe, RobustTask
from fuserec.train.run import Run
from fuserec.train.split import Split
from fuserec.train.windows import WindowBatch


@dataclass(frozen=True)
class SequentialRecipe(RobustRecipe):
    """Training options; the defaults were chosen by validation NDCG@10 on MovieLens-100K. A batch is of windows.

    Attributes:
        n_blocks: layers of the encoder.
        n_heads: attention heads, where there is attention; divides `dim`.
        dropout: of activations.
        label_smoothing: share of the probability that is spread over the catalogue.
    """

    epochs: int = 40
    learning_rate: float = 2e-3
    patience: int = 8
    n_blocks: int = 2
    n_heads: int = 2
    dropout: float = 0.2
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "label_smoothing")
        self.config(n_items=1)  # checks the options of the architecture

    def config(self, *, n_items: int) -> SequentialConfig:
        """Return the architecture that these options give for a catalogue of this size."""
        return SequentialConfig(n_items, self.dim, self.max_history, self.n_blocks, self.n_heads, self.dropout)


@dataclass(frozen=True)
class RecurrentRecipe(SequentialRecipe):
    """As `SequentialRecipe`, with what suits recurrent encoders: wide, shallow, much dropout."""

    dim: int = 128
    n_blocks: int = 1
    dropout: float = 0.5


class NextItemTask(RobustTask[Sequential, SequentialRecipe]):
    """Cross-entropy over the whole catalogue of the item that follows each position."""

    loss_is_per_user = True

    def forward(self, batch: WindowBatch) -> Tensor:
        """Return the mean loss of the batch's positions."""
        states = self.model.user_tower.all_positions(batch.history)
        return self._loss(states, batch.target)

    def _loss(self, states: Tensor, target: Tensor) -> Tensor:
        """Compare (B, L, dim) states with (B, L) target rows; row 0 is no target."""
        asked = target != 0
        logits = states[asked] @ self.model.user_tower.item_table().T
        smoothing = self.recipe.label_smoothing
        return torch.nn.functional.cross_entropy(logits, target[asked] - 1, label_smoothing=smoothing)


@dataclass(frozen=True)
class MaskedRecipe(SequentialRecipe):
    """As `SequentialRecipe`, for guessing masked items: an epoch asks about fewer items, so it takes more of them.

    Attributes:
        mask_probability: of an item of a window to be masked.
    """

    epochs: int = 60
    patience: int = 10
    mask_probability: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.mask_probability < 1.0:
            raise ValueError(f"mask_probability is {self.mask_probability}; expected 0 < mask_probability < 1")


class MaskedItemTask(NextItemTask):
    """Cross-entropy of items that were masked: any of them, and the last one of every window, as when it serves."""

    recipe: MaskedRecipe

    def forward(self, batch: WindowBatch) -> Tensor:
        """Mask, and return the mean loss of what was masked."""
        tower = self.model.user_tower
        assert isinstance(tower, MaskedTower)
        # The window with the item after it, which is where the mask stands that serving appends.
        items = torch.cat([batch.history, batch.target[:, -1:]], dim=1)
        present = items != 0
        places = torch.arange(items.shape[1], device=items.device)
        last = (places * present).argmax(dim=1, keepdim=True)
        masked = torch.rand(items.shape, device=items.device) < self.recipe.mask_probability
        masked = (masked | (places == last)) & present
        states = tower.all_positions(items.masked_fill(masked, tower.mask_row))
        return self._loss(states, items.masked_fill(~masked, 0))


def sequential_trainer(architecture: str, model_type: type[Sequential]) -> Callable[..., Checkpoint]:
    """Return the `train(dataset, recipe, run)` of one of the sequential architectures."""
    task_type = MaskedItemTask if issubclass(model_type, BERT4Rec) else NextItemTask

    def train(dataset: DataSet, recipe: SequentialRecipe, run: Run) -> Checkpoint:
        def build(split: Split) -> Sequential:
            return model_type(recipe.config(n_items=split.item_ids.size))

        return train_retriever(architecture, dataset, recipe, build, task_type, run)

    return train
