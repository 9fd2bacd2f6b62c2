"""What a trained model says at every position of the training sequences, for a student to learn from.

every position --> teacher's user vector, kept in memory as float16 --+
                                                                      +-- dot product * scale = logits
every item -----> teacher's item vector ------------------------------+
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fuserec.errors import DataError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import Split
from fuserec.train.transplant import Origins

MEMORY_BYTES: Final = 4 * 1024**3
WINDOWS: Final = 256

logger = logging.getLogger(__name__)


class Cut(NamedTuple):
    """A chunk of windows.

    Attributes:
        user: (B,) int64 teacher's user rows.
        history: (B, L) int64 teacher's item rows.
        position: (B, L) int64, 1 + the position in the flat sequences; 0 where another window says it.
    """

    user: Tensor
    history: Tensor
    position: Tensor


class Teacher:
    """A trained retriever that is asked and never trained.

    Attributes:
        scale: what its dot products are multiplied by to be logits.
        item_vectors: (n_items, D) float32, in the order of the items of the data.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        split: Split,
        *,
        scale: float | None = None,
        memory_bytes: int = MEMORY_BYTES,
        progress: bool = False,
    ) -> None:
        """Read the training part of a split.

        Args:
            checkpoint: of a retriever that knows the items of the split; users it does not know are unknown users.
            split: whose training part the student learns from.
            scale: of its logits; if None, that which it was trained with.
            memory_bytes: the vectors of all positions are computed once if they take no more; else when asked for.
            progress: whether to draw a bar on stderr.

        Raises:
            UsageError: if the checkpoint is no retriever.
            DataError: if it does not know an item.
        """
        module = checkpoint.module()
        if not isinstance(module, Retriever):
            raise UsageError(
                f"the teacher is a {checkpoint.architecture}, which has no vectors of users and items; "
                "expected a retriever"
            )
        self.model = module
        self.scale = trained_scale(checkpoint) if scale is None else scale
        rows = _rows(checkpoint, split)
        self.item_vectors = module.item_vectors()[torch.from_numpy(rows[1:] - 1)]
        _warn_of_foreknowledge(checkpoint, split)
        # A user it does not know gets row 0, the unknown user.
        self.users = Origins.by_equality(pl.Series(split.user_ids), checkpoint.users["user_id"]).index + 1
        self.sequences = Ragged(rows[split.train.values], split.train.offsets)
        n_bytes = self.sequences.values.size * self.item_vectors.shape[1] * 2
        self.table = self._read(progress) if n_bytes <= memory_bytes else None
        if self.table is None:
            logger.info(
                "the teacher's vectors take %d bytes, more than %d: computed when asked for", n_bytes, memory_bytes
            )

    def vectors(self, positions: Tensor) -> Tensor:
        """Return user vectors.

        Args:
            positions: (N,) int64 positions in the flat values of the training sequences, on any device.

        Returns:
            (N, D) float32 on the same device: what the teacher makes of the history up to and with each position. It
            saw between half of its longest history and all of it, if the history is that long.
        """
        if self.table is None:
            return self._ask(positions.cpu().numpy()).to(positions.device)
        return self.table[positions.cpu()].float().to(positions.device)

    def logits(self, vectors: Tensor) -> Tensor:
        """Compare (N, D) vectors with all items: (N, n_items) float32."""
        return self.scale * vectors @ self.item_vectors.to(vectors.device).T

    @torch.no_grad()
    def _read(self, progress: bool) -> Tensor:
        """(positions, D) float16."""
        table = torch.empty(self.sequences.values.size, self.item_vectors.shape[1], dtype=torch.float16)
        cuts = list(self._cuts())
        for cut in track(cuts, "reading the teacher", console=Console(stderr=True), disable=not progress):
            here = cut.position != 0
            table[cut.position[here] - 1] = self.model.positions(cut.user, cut.history)[here].half()
        if not bool(table.isfinite().all()):
            raise UsageError("the teacher's vectors do not fit float16; expected numbers below 65504")
        return table

    def _cuts(self) -> Iterator[Cut]:
        """Yield windows that overlap by half, each saying its later half, so that no position sees a short past."""
        width = self.model.config.max_history
        step = (width + 1) // 2
        lengths = self.sequences.lengths
        n_windows = (lengths + step - 1) // step
        row = np.repeat(np.arange(lengths.size), n_windows)
        within = np.arange(row.size) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        start = within * step - (width - step)
        flat = Ragged(np.arange(1, self.sequences.values.size + 1), self.sequences.offsets)
        for chunk in np.array_split(np.arange(row.size), max(1, -(-row.size // WINDOWS))):
            position = flat.windows(row[chunk], start[chunk], width)
            position[:, : width - step] = 0
            history = self.sequences.windows(row[chunk], start[chunk], width)
            yield Cut(*map(torch.from_numpy, (self.users[row[chunk]], history, position)))

    @torch.no_grad()
    def _ask(self, positions: IntArray) -> Tensor:
        """(N,) flat positions -> (N, D) float32."""
        width = self.model.config.max_history
        row = np.searchsorted(self.sequences.offsets, positions, side="right") - 1
        start = positions - self.sequences.offsets[row] - width + 1
        # What follows a position must not be seen; windows end with it.
        history = self.sequences.windows(row, start, width)
        user = torch.from_numpy(self.users[row])
        found: Tensor = self.model.user_tower(user, torch.from_numpy(history))
        return found


def trained_scale(checkpoint: Checkpoint) -> float:
    """Return what a model's dot products were multiplied by when it was trained: 1 / temperature, if it had one."""
    recipe: dict[str, Any] = checkpoint.metrics.get("recipe", {})
    return 1.0 / float(recipe.get("temperature", 1.0))


def _rows(checkpoint: Checkpoint, split: Split) -> IntArray:
    """Return the teacher's row of every item row of the split: (n_items + 1,) int64, 0 for padding."""
    index = Origins.by_equality(pl.Series(split.item_ids), checkpoint.items["item_id"]).index
    missing = split.item_ids[index < 0]
    if missing.size:
        raise DataError(
            f"the teacher lacks {missing.size} of {split.item_ids.size} items, such as {missing[0]}; "
            "expected a teacher trained on this catalogue"
        )
    return np.concatenate([np.zeros(1, dtype=np.int64), index + 1])


def _warn_of_foreknowledge(checkpoint: Checkpoint, split: Split) -> None:
    """Tell if the teacher was trained on later interactions: it may then know what the student is tested on."""
    now = pl.DataFrame({"user_id": split.user_ids, "now": split.full.lengths})
    longer = checkpoint.users.join(now, on="user_id").filter(pl.col("history").list.len() > pl.col("now")).height
    if longer:
        logger.warning(
            "the teacher knows more interactions of %d users than the data has: it may know what is tested", longer
        )
