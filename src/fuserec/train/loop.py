"""The training loop: Lightning, with early stopping, the best weights kept in memory, and one progress bar.

Lightning's own `ModelCheckpoint` writes pickle, so it is not used. Nothing is written to disk here.
"""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor


@dataclass(frozen=True)
class Fitted:
    """What a training run left behind.

    Attributes:
        state: state dict of the best epoch, on the CPU.
        best_epoch: its number, from 1.
        epochs: how many were run.
        seconds: wall time of the run.
    """

    state: dict[str, Tensor]
    best_epoch: int
    epochs: int
    seconds: float


class BestWeights(Callback):
    """Keeps a copy of the weights of the epoch with the highest `monitor`."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = -torch.inf
        self.best_epoch = 0
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Copy the weights if this epoch is the best so far; the first of equals stays."""
        value = float(trainer.callback_metrics[self.monitor])
        if value > self.best:
            self.best, self.best_epoch = value, trainer.current_epoch + 1
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.state_dict().items()}


class EpochBar(Callback):
    """One line on stderr: epochs done, the validation metric of the last and of the best epoch."""

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = 0.0
        columns = ("training", BarColumn(), MofNCompleteColumn(), "epochs", TextColumn("{task.fields[note]}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the empty bar."""
        self.task = self.progress.add_task("training", total=trainer.max_epochs, note="")
        self.progress.start()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Advance by an epoch."""
        value = float(trainer.callback_metrics[self.monitor])
        self.best = max(self.best, value)
        note = f"validation {self.monitor} {value:.4f}, best {self.best:.4f}"
        self.progress.update(self.task, advance=1, note=note)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the finished line on the screen, also after an error or an interrupt."""
        self.progress.stop()


def fit(
    module: lightning.LightningModule,
    batches: Iterable[object],
    *,
    monitor: str,
    epochs: int,
    patience: int,
    progress: bool,
) -> Fitted:
    """Train until `monitor` has not risen for `patience` epochs, or for `epochs`.

    Args:
        module: its `validation_step` is called once an epoch and logs `monitor`, higher being better.
        batches: iterated once an epoch.
        monitor: name of the logged metric.
        epochs: at most this many.
        patience: epochs without a new best after which training ends.
        progress: whether to draw a bar on stderr.
    """
    best = BestWeights(monitor)
    callbacks: list[Callback] = [EarlyStopping(monitor, mode="max", patience=patience), best]
    if progress:
        callbacks.append(EpochBar(monitor))
    with _quiet_lightning():
        trainer = lightning.Trainer(
            max_epochs=epochs,
            callbacks=callbacks,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.perf_counter()
        trainer.fit(module, batches, val_dataloaders=[0])
    return Fitted(best.state, best.best_epoch, trainer.current_epoch, time.perf_counter() - start)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence the notices about devices and tips; warnings about the training itself still come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch 2.13 a question that torch has since renamed.
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
            yield
    finally:
        logger.setLevel(level)
