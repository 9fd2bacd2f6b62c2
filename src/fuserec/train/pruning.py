"""Pruning while training: units are masked from an epoch on, and what is left learns to do without them."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from fuserec.errors import UsageError
from fuserec.models.pruning import choose_units, mask_units_, masked_units, pairs


class PruneUnits(Callback):
    """Masks a share of the hidden units of every feed-forward pair of a model, those of least weight."""

    def __init__(self, model: nn.Module, share: float, epoch: int) -> None:
        """Prepare.

        Args:
            model: whose pairs are meant.
            share: of the units of each pair.
            epoch: at the beginning of which the units are chosen, counted from 1.

        Raises:
            UsageError: if the model has no pairs.
        """
        self.pairs = [(pair.inner, pair.outer) for pair in pairs(model)]
        if not self.pairs:
            raise UsageError(
                f"prune is {share}, but {type(model).__name__} has no two linear layers in a row; expected prune=0"
            )
        self.share = share
        self.epoch = epoch
        self.chosen: list[Tensor] = []

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Choose; a resumed run finds the same units again, as they weigh nothing."""
        if trainer.current_epoch + 1 >= self.epoch and not self.chosen:
            self.chosen = [choose_units(inner.weight, outer.weight, self.share) for inner, outer in self.pairs]
            self._mask()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Mask again: the moments of the optimizer go on moving what was masked."""
        self._mask()

    def _mask(self) -> None:
        for (inner, outer), units in zip(self.pairs, self.chosen, strict=False):
            mask_units_(inner, outer, units)

    def report(self) -> dict[str, Any]:
        """Return what the weights hold now, JSON values."""
        masked = [masked_units(inner, outer) for inner, outer in self.pairs]
        units, zeros = sum(one.numel() for one in masked), sum(int(one.sum()) for one in masked)
        return {"share": self.share, "epoch": self.epoch, "units": units, "masked": zeros, "sparsity": zeros / units}
