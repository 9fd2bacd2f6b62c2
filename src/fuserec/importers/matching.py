"""Which row of a foreign model is which user or item of a data folder, and the checkpoint that both make.

A model of another library holds a table of vectors and not whose they are. The ids come beside it; the data folder
says what the items are and who consumed them. What only one of the two knows is left out, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuserec.errors import CheckpointError, DataError
from fuserec.files import sha256
from fuserec.id_map import ORIGINAL
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import DataSet
from fuserec.train.importing import known_ids
from fuserec.train.retrieval import items_table, users_table
from fuserec.train.split import leave_one_out
from fuserec.untrusted.documents import read_text
from fuserec.untrusted.tables import read_table

UNKNOWN: Final = -1
MAX_ID_FILE_BYTES: Final = 2**30
_NUMBER: Final = re.compile(r"\d{1,19}")

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Matched:
    """A data set reduced to what a model knows, and where the model has it.

    Attributes:
        dataset: items that the model has a vector of, and their interactions, with users that it has a vector of.
        item_rows: (I,) int64, for each of `dataset.items` its row in the model's table.
        user_ids: (U,) int64, the users of `dataset.interactions`, rising.
        user_rows: (U,) int64 their rows in the model's table; None if the model has no table of users.
        left_out: how many of what were left out.
    """

    dataset: DataSet
    item_rows: Ids
    user_ids: Ids
    user_rows: Ids | None
    left_out: dict[str, int]

    def item_table(self, vectors: Tensor) -> Tensor:
        """Order vectors (rows, D) as our tables are: (I + 1, D) float32, row 0 zero."""
        return _with_padding(vectors[torch.from_numpy(self.item_rows)])

    def user_table(self, vectors: Tensor) -> Tensor:
        """Likewise (U + 1, D)."""
        assert self.user_rows is not None
        return _with_padding(vectors[torch.from_numpy(self.user_rows)])

    def checkpoint(
        self, architecture: str, arguments: dict[str, Any], state: Mapping[str, Tensor], *, source: Path, library: str
    ) -> Checkpoint:
        """Make the checkpoint.

        Args:
            architecture: a name in `fuserec.models.registry`.
            arguments: its configuration but for `n_items`, and `n_users` where the model has a table of users.
            state: its state dict.
            source: the file that was imported.
            library: that wrote it.

        Raises:
            CheckpointError: if the state is not that of the architecture.
        """
        sizes = {"n_items": self.item_rows.size}
        if self.user_rows is not None:
            sizes["n_users"] = self.user_rows.size
        note = {"library": library, "file": source.name, "sha256": sha256(source), "left_out": self.left_out}
        try:
            return Checkpoint(
                architecture,
                arguments | sizes,
                items_table(self.dataset),
                users_table(leave_one_out(self.dataset)),
                {"imported": note},
                dict(state),
                ids=self.dataset.ids,
            )
        except CheckpointError as error:
            raise CheckpointError(f"{source}: its tensors are not those of {library}: {error}") from error


def match(dataset: DataSet, item_ids: Ids, user_ids: Ids | None) -> Matched:
    """Find the rows of a model in a data set.

    Args:
        dataset: what is known of items and users.
        item_ids: (n,) the id that each row of the model's item table stands for; `UNKNOWN` for none.
        user_ids: likewise of its users; None if it has no table of users.

    Raises:
        DataError: if hardly anything is left, which is to say the ids are of other data.
    """
    known_items = dataset.items["item_id"].to_numpy()
    kept_items, item_rows, _ = np.intersect1d(item_ids, known_items, return_indices=True)
    of_items = pl.col("item_id").is_in(pl.Series(kept_items).implode())
    interactions = dataset.interactions.filter(of_items)
    everybody = dataset.interactions["user_id"].unique().to_numpy()
    if user_ids is not None:
        interactions = interactions.filter(pl.col("user_id").is_in(pl.Series(user_ids).implode()))
    kept_users = interactions["user_id"].unique().sort().to_numpy()
    left_out = {
        "rows_of_unknown_items": item_ids.size - kept_items.size,
        "items_without_vector": known_items.size - kept_items.size,
        "users_without_vector": everybody.size - kept_users.size,
        "interactions": dataset.interactions.height - interactions.height,
    }
    user_rows = None
    if user_ids is not None:
        _, user_rows, _ = np.intersect1d(user_ids, kept_users, return_indices=True)
        left_out["rows_of_unknown_users"] = user_ids.size - user_rows.size
    try:
        kept = DataSet(interactions, dataset.items.filter(of_items), dataset.users, dataset.ids)
    except DataError as error:
        raise DataError(
            f"of {item_ids.size} items of the model and {known_items.size} of the data {kept_items.size} are the same, "
            f"and {interactions.height} of {dataset.interactions.height} interactions are left, which is too little "
            f"({error}); is this the data that the model was trained on?"
        ) from error
    return Matched(kept, item_rows, kept_users, user_rows, left_out)


def read_ids(path: Path) -> list[str]:
    """Read a list of ids: a text file of one a line, or the first column of a Parquet file.

    Raises:
        DataError: if it cannot be read.
    """
    if path.suffix != ".parquet":
        return read_text(path, MAX_ID_FILE_BYTES, DataError).splitlines()
    table = read_table(path, DataError)
    if not table.width:
        raise DataError(f"{path} has no column; expected ids in the first one")
    column = table.to_series(0)
    if column.null_count():
        raise DataError(f"{path}: column {column.name!r} has {column.null_count()} nulls; expected none")
    return [str(value) for value in column]


def numbers_of(labels: Sequence[str], data: Path, kind: str, source: Path) -> Ids:
    """Return the ids that a data folder has for the ids another library knew.

    Args:
        labels: as the other library wrote them; no two alike.
        data: the data folder; if `fuserec data import` made it, the labels are those from before.
        kind: "user" or "item".
        source: where the labels are from, for messages.

    Returns:
        (n,) int64, `UNKNOWN` for a label that the import never saw.

    Raises:
        DataError: if labels repeat, or are no numbers though the data has no others.
    """
    repeated = pl.Series(labels, dtype=pl.String).value_counts().filter(pl.col("count") > 1)
    if repeated.height:
        label, count = repeated.row(0)
        raise DataError(f"{source}: {kind} {label!r} stands there {count} times; expected every {kind} once")
    if (data / f"ids_{kind}s.parquet").is_file():
        known = known_ids(data, f"{kind}s")
        numbers = dict(known.table.select(ORIGINAL, known.number).iter_rows())
        return np.array([numbers.get(label, UNKNOWN) for label in labels], dtype=np.int64)
    for label in labels:
        if not _NUMBER.fullmatch(label) or int(label) >= 2**63:
            raise DataError(
                f"{source}: {kind} {label!r} is no number, as the ids in {data} are; expected the same ids, or a data "
                "folder made by `fuserec data import` from the files with those ids"
            )
    return np.array([int(label) for label in labels], dtype=np.int64)


def _with_padding(vectors: Tensor) -> Tensor:
    return torch.nn.functional.pad(vectors.float(), (0, 0, 1, 0))
