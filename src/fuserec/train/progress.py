"""What can be watched while training: a bar on stderr, and TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class EpochBar(Callback):
    """Epochs done, the validation metric of the last and of the best epoch, on stderr.

    A terminal gets a bar; a pipe or a file gets a line an epoch, so that a log shows that training goes on.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = 0.0
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
        columns = ("training", BarColumn(), MofNCompleteColumn(), "epochs", TextColumn("{task.fields[note]}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), console=self.console)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw the bar, empty unless the run is resumed."""
        self.began = time.monotonic()
        self.task = self.progress.add_task(
            "training", total=trainer.max_epochs, completed=trainer.current_epoch, note=""
        )
        if self.console.is_terminal:
            self.progress.start()
        else:
            self.console.print(f"training: {trainer.max_epochs} epochs at most")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Advance by an epoch."""
        value = float(trainer.callback_metrics[self.monitor])
        self.best = max(self.best, value)
        note = f"validation {self.monitor} {value:.4f}, best {self.best:.4f}"
        self.progress.update(self.task, advance=1, note=note)
        if not self.console.is_terminal:
            done, seconds = trainer.current_epoch + 1, time.monotonic() - self.began
            self.console.print(f"epoch {done} of {trainer.max_epochs}: {note}; {seconds:.0f} s")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Leave the line on the screen after an error or an interrupt."""
        self.progress.stop()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the finished line on the screen."""
        self.progress.stop()


class LossCurve(Callback):
    """Logs the mean training loss of every epoch, for every task alike."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hand the loss to Lightning, which takes the mean over the epoch and over devices."""
        pl_module.log("train_loss", outputs["loss"], on_step=False, on_epoch=True, sync_dist=True, batch_size=1)


def tensorboard(folder: Path) -> tuple[TensorBoardLogger, list[Callback]]:
    """Return what writes training loss, learning rate and validation metric of every epoch into `folder`."""
    logger = TensorBoardLogger(folder.parent, name=folder.name, version="")
    return logger, [LossCurve(), LearningRateMonitor(logging_interval="epoch")]
