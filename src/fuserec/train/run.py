"""How a training run is carried out; what is learned is the recipe's matter."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fuserec.errors import UsageError
from fuserec.train.start import Start

PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")
ACCELERATORS: Final = ("auto", "cpu", "gpu")
STRATEGIES: Final = ("auto", "ddp", "ddp_find_unused_parameters_true")


@dataclass(frozen=True)
class TrainerOptions:
    """What is handed on to Lightning, in its own words, and where a run leaves its traces.

    Attributes:
        accumulate: batches whose gradients are added up for one step.
        precision: of the arithmetic while training; metrics are always computed in float32.
        accelerator: "cpu", "gpu", or whichever there is.
        devices: processes that share every batch, a device each.
        strategy: how devices work together; "auto" is "ddp" where there are several, and the long name is for models
            that leave some of their weights out of a step. Strategies that spread the weights themselves are not
            offered: the best of them are kept as one state.
        tensorboard: folder for TensorBoard's event files.
        checkpoints: folder for the state that an interrupted run is resumed from, rewritten after every epoch.
        resume: folder of such a state to go on from; it is rewritten unless `checkpoints` names another.

    Raises:
        UsageError: if a value is unknown or too small.
    """

    accumulate: int = 1
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    tensorboard: Path | None = None
    checkpoints: Path | None = None
    resume: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("precision", PRECISIONS), ("accelerator", ACCELERATORS), ("strategy", STRATEGIES)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name in ("accumulate", "devices"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    def state_folder(self) -> Path | None:
        """Where the state is written after every epoch, if anywhere."""
        return self.checkpoints or self.resume


@dataclass(frozen=True)
class Privacy:
    """Differential privacy for users: the weights say little about whether any one user was among the data.

    Attributes:
        epsilon: most that may be spent, all epochs together.
        delta: probability with which the promise may fail; below one in the number of users.
        clip: length to which the gradient of a user is cut.
        windows: at most this many windows of a user's sequence make up the user's example.

    Raises:
        UsageError: if a value makes no sense.
    """

    epsilon: float
    delta: float = 1e-5
    clip: float = 1.0
    windows: int = 4

    def __post_init__(self) -> None:
        for name in ("epsilon", "clip", "windows"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} of private training is {getattr(self, name)}; expected a positive number")
        if not 0.0 < self.delta < 1.0:
            raise UsageError(f"delta of private training is {self.delta}; expected 0 < delta < 1")


class Interrupt:
    """Ctrl-C while a model is trained: whether the best epoch so far becomes the checkpoint.

    Args:
        keep: Called with a sentence about that epoch; True makes it what training returns.

    Attributes:
        happened: Training was interrupted, and what was learned until then was kept.
    """

    def __init__(self, keep: Callable[[str], bool]) -> None:
        self.happened = False
        self._keep = keep

    def keeps(self, best: str) -> bool:
        """Return whether to keep the epoch that `best` is about."""
        self.happened = self._keep(best)
        return self.happened


@dataclass(frozen=True)
class Run:
    """What surrounds a training run.

    Attributes:
        progress: whether to draw a progress bar on stderr.
        trainer: how Lightning is set up.
        privacy: train with differential privacy.
        start: the checkpoint whose weights training starts with; random weights if None.
        interrupt: what Ctrl-C does after an epoch; None leaves it to the caller, as KeyboardInterrupt.

    Raises:
        UsageError: if private training came with an option that it cannot keep its promise under.
    """

    progress: bool = True
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    privacy: Privacy | None = None
    start: Start | None = None
    interrupt: Interrupt | None = None

    @property
    def was_interrupted(self) -> bool:
        """Whether an earlier part of this run was interrupted and kept: no further part begins."""
        return self.interrupt is not None and self.interrupt.happened

    def __post_init__(self) -> None:
        options = self.trainer
        if self.privacy is None:
            return
        if (options.accumulate, options.devices, options.precision) != (1, 1, "32-true"):
            raise UsageError(
                f"private training came with accumulate {options.accumulate}, devices {options.devices}, precision "
                f"{options.precision}; expected 1, 1 and 32-true"
            )
        if options.state_folder is not None:
            # Whoever reads the state of the generator can take the noise away again.
            raise UsageError("private training came with checkpoints or resume; its noise must not be written down")

    def refuse_start_and_privacy(self, recipe: str) -> None:
        """Raise `UsageError` where a recipe that can do neither is to start from a checkpoint or to train privately."""
        if self.start is not None:
            raise UsageError(f"{recipe} came with --continue or --from; it can only be trained anew")
        if self.privacy is not None:
            raise UsageError(f"{recipe} came with --private-epsilon; expected a sequential recipe")

    def phase(self, name: str) -> Run:
        """Return the run of one phase of a training that has several, with folders of its own for what is written."""
        options = self.trainer
        state, board = options.state_folder, options.tensorboard
        resume = options.resume and options.resume / name
        return replace(
            self,
            trainer=replace(
                options,
                checkpoints=state and state / name,
                # A phase that was not reached has left nothing to go on from.
                resume=resume if resume and resume.exists() else None,
                tensorboard=board and board / name,
            ),
        )


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints, of those that train together."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0
