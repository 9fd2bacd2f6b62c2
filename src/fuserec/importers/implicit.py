"""Factors that implicit trained (ALS, BPR, logistic matrix factorization), from the .npz of its `save`, as `mf`.

A score is the dot product of a user's and an item's row in all of them. BPR keeps the items' bias in one more column,
where users have 1; logistic factorization has two more, for either side's bias. Which row is whom the file does not
say: rows are the coordinates of the matrix that the model was fitted on.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.importers.matching import Ids, Matched, match, numbers_of, read_ids
from fuserec.importers.npz import read_npz
from fuserec.importers.order import Agreement, agreement
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import DataSet, read_folder

USER_FACTORS: Final = "user_factors"
ITEM_FACTORS: Final = "item_factors"
FACTORS: Final = "factors"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Factors:
    """What a file holds.

    Attributes:
        users: (U, D) float32.
        items: (I, D) float32.
        item_bias: whether the last column is the items' bias, and 1 for users.
    """

    users: NDArray[np.float32]
    items: NDArray[np.float32]
    item_bias: bool


class Rows(enum.Enum):
    """What the rows of the factors are, where no file says."""

    SORTED = "sorted"
    TEXTS = "texts"
    IDS = "ids"


def import_implicit(
    path: Path,
    data: Path,
    *,
    users: Path | None = None,
    items: Path | None = None,
    rows: Rows = Rows.SORTED,
    trust_order: bool = False,
) -> Checkpoint:
    """Make a checkpoint of implicit's factors.

    Args:
        path: the .npz.
        data: a data folder: what the items are, and what the users consumed.
        users: ids of the rows of the user factors, one a line, or Parquet.
        items: ids of the rows of the item factors.
        rows: what the rows are without such files. SORTED: the users of the interactions, and the items of the folder
            or those with interactions, in rising order of their ids. TEXTS: likewise, sorted as texts: 1, 10, 2. IDS:
            row n is user or item n.
        trust_order: whether known pairs may score no better than exchanged ones.

    Raises:
        CheckpointError: if the file is not what implicit writes.
        DataError: if rows and ids do not match, or known pairs score no better than chance.
        UsageError: if one of `users` and `items` is given alone.
    """
    if (users is None) != (items is None):
        raise UsageError("only one of --users and --items is given; expected both, or none")
    factors = read_factors(path)
    dataset = read_folder(data)
    if users is not None and items is not None:
        user_ids = _listed(factors.users, users, data, "user")
        item_ids = _listed(factors.items, items, data, "item")
    elif rows is Rows.IDS:
        user_ids, item_ids = np.arange(len(factors.users)), np.arange(len(factors.items))
    else:
        user_ids, item_ids = _sorted_ids(path, factors, dataset, as_texts=rows is Rows.TEXTS)
    matched = match(dataset, item_ids, user_ids)
    found = _agreement(factors, matched)
    if not trust_order:
        _check_order(path, factors, dataset, found, may_be_texts=users is None and rows is Rows.SORTED)
    state = {
        "user_tower.user_embedding.weight": matched.user_table(torch.from_numpy(factors.users)),
        "user_tower.item_embedding.weight": matched.item_table(torch.from_numpy(factors.items)),
    }
    arguments = {"dim": factors.items.shape[1], "item_bias": factors.item_bias}
    checkpoint = matched.checkpoint("mf", arguments, state, source=path, library="implicit")
    note = checkpoint.metrics["imported"] | {"agreement": round(found.value, 4)}
    return dataclasses.replace(checkpoint, metrics=checkpoint.metrics | {"imported": note})


def _agreement(factors: Factors, matched: Matched) -> Agreement:
    """Compare the factors with the interactions of those whom the rows are taken for."""
    assert matched.user_rows is not None
    user_ids, item_ids = matched.dataset.interactions["user_id"], matched.dataset.interactions["item_id"]
    user_rows = matched.user_rows[np.searchsorted(matched.user_ids, user_ids.to_numpy())]
    item_rows = matched.item_rows[np.searchsorted(matched.dataset.items["item_id"].to_numpy(), item_ids.to_numpy())]
    return agreement(factors.users, factors.items, np.stack([user_rows, item_rows], axis=1))


def _check_order(path: Path, factors: Factors, dataset: DataSet, found: Agreement, *, may_be_texts: bool) -> None:
    """Raise where the rows are not in the order that was taken, saying which one fits; warn where it is not certain."""
    said = (
        f"{path}: known users and items score more than exchanged ones in {found.value:.1%} of the cases, where chance "
        f"gives {found.by_chance:.0%}: the rows are not in the order of the ids that they were taken for"
    )
    if may_be_texts:
        users, items = _sorted_ids(path, factors, dataset, as_texts=True)
        other = _agreement(factors, match(dataset, items, users))
        if not other.is_chance and other.is_certain and other.value > found.value + found.spread:
            raise DataError(f"{said}; the ids sorted as texts fit, with {other.value:.1%}: give --sorted-as-texts")
    if found.is_chance and found.is_certain:
        raise DataError(
            f"{said}. Give the ids of the rows with --users FILE and --items FILE, or --trust-order if they are right"
        )
    if found.is_chance:
        logger.warning("%s, or %d pairs are too few to tell", said, found.n_pairs)


def read_factors(path: Path) -> Factors:
    """Read and check the .npz.

    Raises:
        CheckpointError: if it is not what implicit writes.
    """
    arrays = read_npz(path, (USER_FACTORS, ITEM_FACTORS, FACTORS))
    users, items = (_vectors(path, name, arrays[name]) for name in (USER_FACTORS, ITEM_FACTORS))
    if users.shape[1] != items.shape[1]:
        raise CheckpointError(
            f"{path}: {USER_FACTORS} have {users.shape[1]} columns and {ITEM_FACTORS} {items.shape[1]}; "
            "expected as many"
        )
    latent = arrays[FACTORS]
    if latent.shape != () or latent.dtype.kind not in "iu":
        raise CheckpointError(f"{path}: {FACTORS} is {latent.dtype} {latent.shape}; expected one integer")
    extra = users.shape[1] - int(latent)
    if extra == 0:
        return Factors(users, items, item_bias=False)
    if extra not in (1, 2):
        raise CheckpointError(
            f"{path}: {users.shape[1]} columns for {int(latent)} factors; expected as many (ALS), one more for the "
            "items' bias (BPR), or two more for biases of both (logistic)"
        )
    column = _column_of_ones(path, users, -extra)
    order = [at for at in range(users.shape[1]) if at != column] + [column]
    return Factors(np.ascontiguousarray(users[:, order]), np.ascontiguousarray(items[:, order]), item_bias=True)


def _vectors(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
        raise CheckpointError(f"{path}: {name} is {values.dtype} {values.shape}; expected a float matrix")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
        converted = values.astype(np.float32)
    broken = int((~np.isfinite(converted)).any(axis=1).sum())
    if broken:
        raise CheckpointError(f"{path}: {broken} rows of {name} hold NaN or infinity; expected finite numbers")
    return converted


def _column_of_ones(path: Path, users: NDArray[np.float32], first: int) -> int:
    """Return the column, from `first` on, that is 1 for all users but those without interactions, who are all zero."""
    fitted = users[users.any(axis=1)]
    for column in range(users.shape[1] + first, users.shape[1]):
        if (fitted[:, column] == 1.0).all():
            return column
    raise CheckpointError(
        f"{path}: none of the last {-first} columns of {USER_FACTORS} is 1; expected one, that of the items' bias"
    )


def _listed(factors: NDArray[np.float32], ids: Path, data: Path, kind: str) -> Ids:
    labels = read_ids(ids)
    if len(labels) != len(factors):
        raise DataError(f"{ids} has {len(labels)} ids for {len(factors)} rows of {kind} factors; expected as many")
    return numbers_of(labels, data, kind, ids)


def _sorted_ids(path: Path, factors: Factors, dataset: DataSet, *, as_texts: bool = False) -> tuple[Ids, Ids]:
    users = np.unique(dataset.interactions["user_id"].to_numpy())
    catalogue, consumed = dataset.items["item_id"].to_numpy(), np.unique(dataset.interactions["item_id"].to_numpy())
    items = consumed if len(factors.items) == consumed.size else catalogue
    for kind, rows, ids in (("user", factors.users, users), ("item", factors.items, items)):
        if len(rows) != ids.size:
            hint = "; --row-is-id says that row n is id n" if len(rows) == int(ids.max()) + 1 else ""
            other = f" ({consumed.size} with interactions)" if kind == "item" and consumed.size != ids.size else ""
            raise DataError(
                f"{path} has {len(rows)} rows of {kind} factors; the data has {ids.size} {kind}s{other}: "
                f"which is whom? Give the ids of the rows, in their order, with --users FILE and --items FILE{hint}"
            )
    return (_as_texts(users), _as_texts(items)) if as_texts else (users, items)


def _as_texts(ids: Ids) -> Ids:
    return ids[np.argsort(ids.astype(str), kind="stable")]
