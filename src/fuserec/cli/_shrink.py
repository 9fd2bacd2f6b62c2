"""What `fuserec export --prune` and `--drop-layers` do before anything is exported."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fuserec.errors import UsageError


@dataclass(frozen=True)
class Smaller:
    """How a checkpoint is to be made smaller, if at all.

    Attributes:
        prune: share of the hidden units that is taken out.
        drop_layers: how many layers are left out.
        epochs: of fine-tuning.
        data: what the checkpoint was trained on, where its recipe needs more than the histories that it stores.
        keep_in: folder to save the smaller checkpoint as.
    """

    prune: float = 0.0
    drop_layers: int = 0
    epochs: int = 2
    data: Path | None = None
    keep_in: Path | None = None

    def __post_init__(self) -> None:
        if not self.is_asked_for and (self.data is not None or self.keep_in is not None):
            raise UsageError("--data or --save-shrunk came without --prune or --drop-layers; expected one of these")

    @property
    def is_asked_for(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.prune or self.drop_layers)


@contextlib.contextmanager
def made_smaller(folder: Path, smaller: Smaller) -> Iterator[tuple[Path, Path | None]]:
    """Yield the folder of the checkpoint to export, and that of the original if it is not the same.

    Raises:
        UsageError, CheckpointError, DataError: as `fuserec.train.shrinking.make_smaller` and `Checkpoint`.
    """
    if not smaller.is_asked_for:
        yield folder, None
        return
    from fuserec import display
    from fuserec.models.checkpoint import Checkpoint, check_destination
    from fuserec.train.shrinking import make_smaller

    if smaller.keep_in is not None:
        check_destination(smaller.keep_in)  # now, not after minutes of training
    checkpoint = make_smaller(
        Checkpoint.load(folder),
        prune=smaller.prune,
        drop_layers=smaller.drop_layers,
        epochs=smaller.epochs,
        data=smaller.data,
    )
    display.shrunk(checkpoint.metrics["shrunk"])
    with tempfile.TemporaryDirectory() as scratch:
        written = smaller.keep_in or Path(scratch) / "checkpoint"
        checkpoint.save(written)
        yield written, folder
