"""Which epoch's weights are kept, and when there is no point in going on."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor


class BestWeights(Callback):
    """Keeps a copy of the weights of the epoch with the highest `monitor`, of those from `first` on."""

    def __init__(self, monitor: str, first: int = 1) -> None:
        self.monitor = monitor
        self.first = first
        self.best = -torch.inf
        self.best_epoch = 0
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Copy the weights if this epoch is the best so far; the first of equals stays."""
        value = float(trainer.callback_metrics[self.monitor])
        epoch = trainer.current_epoch + 1
        if epoch >= self.first and value > self.best:
            self.best, self.best_epoch = value, epoch
            # The strategy knows how to put together what it has spread over devices.
            state = trainer.strategy.lightning_module_state_dict()
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


class Patience(EarlyStopping):
    """Ends training when the metric has not risen for some epochs, counted from epoch `first` on."""

    def __init__(self, monitor: str, patience: int, first: int = 1) -> None:
        super().__init__(monitor, mode="max", patience=patience)
        self.first = first

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Check, unless nothing counts yet."""
        if trainer.current_epoch + 1 >= self.first:
            super().on_train_epoch_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """As Lightning's, in JSON values."""
        return {**super().state_dict(), "best_score": float(self.best_score)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take `state_dict` back."""
        super().load_state_dict({**state_dict, "best_score": torch.tensor(state_dict["best_score"])})
