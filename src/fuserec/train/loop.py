"""The training loop: Lightning, set up from a `Run`.

Lightning's own `ModelCheckpoint` writes pickle, so it is not used: the best weights stay in memory, and what an
interrupted run is resumed from is `resume.py`'s.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from fuserec.errors import UsageError
from fuserec.train.batches import Batches, Shard
from fuserec.train.progress import EpochBar, tensorboard
from fuserec.train.resume import RunState, SavedRun
from fuserec.train.run import Run, TrainerOptions, is_first_process
from fuserec.train.selection import BestWeights, Patience


@dataclass(frozen=True)
class Fitted:
    """What a training run left behind.

    Attributes:
        state: state dict of the best epoch, on the CPU.
        best_epoch: its number, from 1.
        epochs: how many were run.
        steps: updates of the weights, on every device alike.
        seconds: wall time of the run.
    """

    state: dict[str, Tensor]
    best_epoch: int
    epochs: int
    steps: int
    seconds: float


def fit(
    module: lightning.LightningModule,
    batches: Batches,
    *,
    monitor: str,
    epochs: int,
    patience: int,
    run: Run,
    identity: Mapping[str, Any],
    first: int = 1,
    extra: Sequence[Callback] = (),
) -> Fitted:
    """Train until `monitor` has not risen for `patience` epochs, or for `epochs`.

    With several devices Lightning starts the whole command again once a device, and this function is reached by all of
    these processes; all of them return the same.

    Args:
        module: its `validation_step` is called once an epoch and logs `monitor`, higher being better.
        batches: iterated once an epoch.
        monitor: name of the logged metric.
        epochs: at most this many.
        patience: epochs without a new best after which training ends.
        run: how it is carried out.
        identity: what is learned from what, JSON values; a saved state is resumed only by a run of equal identity.
        first: epoch from which on the metric counts; the weights of earlier ones are not kept.
        extra: callbacks that this training needs besides.

    Raises:
        KeyboardInterrupt: at SIGINT, unless the run keeps the best epoch so far.
        CheckpointError: if the run is to resume from a state that is missing, damaged, or another run's.
        UsageError: if the options ask for what this machine does not have.
    """
    options = run.trainer
    _check_machine(options)
    best, stop = BestWeights(monitor, first), Patience(monitor, patience, first)
    callbacks: list[Callback] = [*extra, stop, best]
    if run.progress and is_first_process():
        callbacks.append(EpochBar(monitor))
    logger: Logger | None = None
    if options.tensorboard is not None:
        logger, watchers = tensorboard(options.tensorboard)
        callbacks += watchers
    if options.state_folder is not None:
        identity = {**identity, "accumulate": options.accumulate, "precision": options.precision}
        identity["devices"] = options.devices
        saved = None
        if options.resume is not None:
            saved = SavedRun.load(options.resume)
            saved.check_same_run(identity)
        callbacks.append(RunState(options.state_folder, identity, batches, best, stop, saved))
    with _quiet_lightning():
        trainer = lightning.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=options.strategy,
            precision=options.precision,  # type: ignore[arg-type]  # checked by TrainerOptions
            accumulate_grad_batches=options.accumulate,
            max_epochs=epochs,
            callbacks=callbacks,
            num_sanity_val_steps=0,
            logger=logger or False,
            log_every_n_steps=1,
            enable_checkpointing=options.state_folder is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = time.perf_counter()
        if trainer.world_size > 1:
            batches = Shard(batches, trainer.global_rank, trainer.world_size)
            # Equal seeds would drop the same activations on every device.
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        try:
            with _raising_at_sigint(trainer.world_size):
                trainer.fit(module, batches, val_dataloaders=[0])
        except _SigintError:
            so_far = f"the best epoch so far is {best.best_epoch}, with {monitor} {best.best:.4f} on validation"
            if not best.state or run.interrupt is None or not run.interrupt.keeps(so_far):
                raise KeyboardInterrupt from None
    return Fitted(best.state, best.best_epoch, trainer.current_epoch, trainer.global_step, time.perf_counter() - start)


class _SigintError(BaseException):
    """In the place of KeyboardInterrupt, at which Lightning would end the process."""


@contextlib.contextmanager
def _raising_at_sigint(devices: int) -> Iterator[None]:
    """Raise `_SigintError` at the first SIGINT; the second is handled as before.

    Signals are the main thread's, and of several devices Lightning ends all processes itself.
    """
    if threading.current_thread() is not threading.main_thread() or devices > 1:
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        raise _SigintError

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_machine(options: TrainerOptions) -> None:
    found = torch.cuda.device_count()
    if options.accelerator == "gpu" and found < options.devices:
        raise UsageError(
            f"accelerator is 'gpu' and devices {options.devices}; expected at most {found}, which are here"
        )
    if options.precision == "16-mixed" and (options.accelerator == "cpu" or not found):
        raise UsageError("precision is '16-mixed' without a GPU; expected 32-true or bf16-mixed")


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence the notices about devices and tips; warnings about the training itself still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch 2.13 a question that torch has since renamed.
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
