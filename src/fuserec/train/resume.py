"""The state of an unfinished run: one file, written after every epoch, from which the run goes on as if never stopped.

Lightning's own checkpoints are pickle, so this is a safetensors file instead: tensors as they are, everything else as
JSON in its header. One file, because it alone can take the place of the former one in a single step: a process killed
at any moment leaves the state of the last epoch or of the one before it.

    weights.NAME              the module with its buffers
    best.NAME                 the weights of the best epoch, on the CPU
    optimizer.O.PARAMETER.KEY moments of the optimizers
    random.cpu, random.cuda   (devices, bytes) uint8, torch's generators, a row a device
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as lightning
import polars as pl
import safetensors
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.optim import Optimizer

from fuserec.errors import CheckpointError
from fuserec.files import replacing_file
from fuserec.train.batches import Batches
from fuserec.train.selection import BestWeights, Patience
from fuserec.untrusted.documents import parse_json
from fuserec.untrusted.tensors import read_header

STATE_FILE: Final = "resume.safetensors"
FORMAT: Final = "fuserec-resume-1"


def data_digest(*tables: pl.DataFrame) -> str:
    """Return a digest of tables, rows in order; it may change with the version of polars."""
    digest = hashlib.sha256(pl.__version__.encode())
    for table in tables:
        digest.update(" ".join(table.columns).encode())
        digest.update(table.hash_rows().to_numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SavedRun:
    """A state read back.

    Attributes:
        identity: what the run learned from what, JSON values.
        progress: JSON values; see `RunState`.
        tensors: by the names above.
    """

    identity: dict[str, Any]
    progress: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, folder: Path) -> SavedRun:
        """Read the state in `folder`.

        Raises:
            CheckpointError: if there is none, or it is damaged or of another version.
        """
        path = folder / STATE_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no {STATE_FILE}; expected a folder given as --checkpoints before")
        header = read_header(path, CheckpointError).metadata
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{path}: format is {header.get('format')!r}; expected {FORMAT!r}")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        try:
            # The state of a generator is an integer of 128 bits, and the best score of no epoch is -infinity.
            identity, progress = (parse_json(header[name], any_number=True) for name in ("identity", "progress"))
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: its identity or progress {error}") from error
        return cls(identity, progress, tensors)

    def save(self, folder: Path) -> None:
        """Write the state into `folder`, in the place of a former one."""
        header = {
            "format": FORMAT,
            "identity": json.dumps(self.identity),
            "progress": json.dumps(self.progress),
        }
        # Tied tensors share memory, which the format forbids.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        with replacing_file(folder / STATE_FILE) as path:
            safetensors.torch.save_file(tensors, path, metadata=header)

    def check_same_run(self, identity: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless `identity` is that of the saved run; the message names what differs.

        The number of epochs may differ: no step depends on it. With fewer than are done, the best of those is kept.
        """
        asked = json.loads(json.dumps(identity))
        differing = [
            f"{name} was {self.identity.get(name)!r} and is {asked.get(name)!r}"
            for name in sorted((self.identity.keys() | asked.keys()) - {"epochs"})
            if self.identity.get(name) != asked.get(name)
        ]
        if differing:
            raise CheckpointError(f"the state to resume from is another run's: {'; '.join(differing)}")

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix` and a dot, without it."""
        start = f"{prefix}."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class RunState(Checkpoint):
    """Puts a saved run back before the first epoch, and saves the run after every epoch.

    A `Checkpoint` to Lightning, which calls those last, when early stopping has made its decision.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        batches: Batches,
        best: BestWeights,
        patience: Patience,
        saved: SavedRun | None,
    ) -> None:
        """Prepare.

        Args:
            folder: where to save.
            identity: what the run learns from what, JSON values.
            batches: the loader, as `fit` was given it.
            best: of the same trainer.
            patience: of the same trainer.
            saved: what to go on from.
        """
        self.folder = folder
        self.identity = dict(identity)
        self.batches = batches
        self.best = best
        self.patience = patience
        self.saved = saved

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put weights, optimizers and counters back; the optimizers exist by now, and no batch has been drawn."""
        if self.saved is None:
            return
        saved, progress = self.saved, self.saved.progress
        pl_module.load_state_dict(saved.part("weights"))
        for index, optimizer in enumerate(trainer.optimizers):
            _load_optimizer(optimizer, saved.part(f"optimizer.{index}"), progress["optimizers"][index])
        for config, state in zip(trainer.lr_scheduler_configs, progress["schedulers"], strict=True):
            config.scheduler.load_state_dict(state)
        trainer.precision_plugin.load_state_dict(progress["precision"])
        self.best.state = saved.part("best")
        self.best.best, self.best.best_epoch = progress["best"], progress["best_epoch"]
        self.patience.load_state_dict(progress["patience"])
        trainer.should_stop = progress["stopped"]
        _advance(trainer, progress["epoch"], progress["step"], progress["batches"])

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Put the generators back, now that Lightning has drawn, and will drop, a first batch."""
        if self.saved is None:
            return
        self.batches.generator.bit_generator.state = self.saved.progress["loader"]
        row = trainer.global_rank
        torch.set_rng_state(self.saved.tensors["random.cpu"][row])
        if pl_module.device.type == "cuda":
            torch.cuda.set_rng_state(self.saved.tensors["random.cuda"][row], pl_module.device)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save."""
        tensors = {f"weights.{name}": tensor for name, tensor in pl_module.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.state.items()}
        for index, optimizer in enumerate(trainer.optimizers):
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in _optimizer_tensors(optimizer).items()}
        tensors["random.cpu"] = _of_all_devices(trainer, pl_module, torch.get_rng_state())
        if pl_module.device.type == "cuda":
            tensors["random.cuda"] = _of_all_devices(trainer, pl_module, torch.cuda.get_rng_state(pl_module.device))
        progress = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "batches": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "best": self.best.best,
            "best_epoch": self.best.best_epoch,
            "patience": self.patience.state_dict(),
            "stopped": trainer.should_stop,
            "optimizers": [optimizer.state_dict()["param_groups"] for optimizer in trainer.optimizers],
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "loader": self.batches.generator.bit_generator.state,
        }
        if trainer.is_global_zero:
            SavedRun(self.identity, progress, tensors).save(self.folder)


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return what an optimizer remembers, as "parameter.key"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": torch.as_tensor(value) for index, kept in state.items() for key, value in kept.items()}


def _load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _advance(trainer: lightning.Trainer, epoch: int, step: int, batches: int) -> None:
    """Set Lightning's counters as they stand between two epochs, which is not one of the states it resumes from."""
    loop = trainer.fit_loop
    for _ in range(epoch):
        loop.epoch_progress.increment_ready()
        loop.epoch_progress.increment_started()
        loop.epoch_progress.increment_processed()
        loop.epoch_progress.increment_completed()
    loop.epoch_loop._batches_that_stepped = batches
    loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step


def _of_all_devices(trainer: lightning.Trainer, pl_module: lightning.LightningModule, state: Tensor) -> Tensor:
    """Gather the state of a random generator from every process: (bytes,) uint8 -> (devices, bytes)."""
    gathered = trainer.strategy.all_gather(state.to(pl_module.device))
    return gathered.reshape(trainer.world_size, -1).cpu()
