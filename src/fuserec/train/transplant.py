"""Moves trained weights into a model of the same architecture over another catalogue and other users.

An entry of a table moves with what it stands for: a title word with its spelling, a genre with its name, a year
bucket to the bucket that lies where it lay, an item and a user with their ids if the ids mean the same. Entries of
what is new keep the model's own initialization. Everything else is copied as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.entries import Computed, Entries, Vocabulary
from fuserec.models.retriever import Retriever
from fuserec.train.features import genre_names, known_words, year_buckets, year_edges
from fuserec.train.ragged import IntArray


@dataclass(frozen=True)
class Origins:
    """Where the members of one vocabulary stood before.

    Attributes:
        index: (members now,) int64, the place among the members before; -1 for what is new.
        n_before: members before.
    """

    index: IntArray
    n_before: int

    @classmethod
    def by_equality(cls, now: pl.Series, before: pl.Series) -> Origins:
        """Find the same values; those of `before` are unique."""
        places = pl.DataFrame({"value": before, "place": np.arange(len(before))})
        found = now.rename("value").to_frame().join(places, on="value", how="left", maintain_order="left")
        return cls(found["place"].fill_null(-1).to_numpy().astype(np.int64), len(before))

    @classmethod
    def by_span(cls, now: Tensor, before: Tensor) -> Origins:
        """Find the bucket in which the middle of each bucket lies, given the edges of the buckets."""
        n_now, n_before = (max(edges.numel() - 1, 0) for edges in (now, before))
        if n_before == 0:
            return cls.none(n_now, 0)
        return cls(year_buckets((now[:-1] + now[1:]) / 2, before).numpy(), n_before)

    @classmethod
    def none(cls, n_now: int, n_before: int) -> Origins:
        """Nothing is as it was."""
        return cls(np.full(n_now, -1, dtype=np.int64), n_before)


def origins(
    checkpoint: Checkpoint, items: pl.DataFrame, user_ids: IntArray, *, keep_ids: bool
) -> dict[Vocabulary, Origins]:
    """Compare a checkpoint's vocabularies with those of other data.

    Args:
        checkpoint: the trained model.
        items: the other catalogue, as `DataSet.items`.
        user_ids: (U,) int64, the other users, in the order of their rows.
        keep_ids: whether an id names the same item or user in both.
    """
    before = checkpoint.items
    ids: dict[Vocabulary, tuple[pl.Series, pl.Series]] = {
        "items": (items["item_id"], before["item_id"]),
        "users": (pl.Series(user_ids, dtype=pl.Int64), checkpoint.users["user_id"]),
    }
    find = Origins.by_equality if keep_ids else lambda now, then: Origins.none(len(now), len(then))
    found = {name: find(*pair) for name, pair in ids.items()}
    found["genres"] = Origins.by_equality(genre_names(items["genres"]), genre_names(before["genres"]))
    found["words"] = Origins.by_equality(known_words(items["title"]), known_words(before["title"]))
    found["years"] = Origins.by_span(year_edges(items["year"]), year_edges(before["year"]))
    return found


@torch.no_grad()
def transplant(model: Retriever, state: Mapping[str, Tensor], known: Mapping[Vocabulary, Origins]) -> None:
    """Copy trained tensors into a model.

    Args:
        model: freshly built; changed in place.
        state: the state dict of the trained one.
        known: `origins` of the vocabularies that `model.entries` names.

    Raises:
        UsageError: if the two differ in more than their vocabularies.
    """
    own = model.state_dict()
    for name in sorted((own.keys() ^ state.keys()) - model.entries.keys()):
        holder = "the checkpoint" if name in state else "the model of these options"
        raise UsageError(f"only {holder} has a tensor {name}; expected the checkpoint's architecture and sizes")
    for name, tensor in own.items():
        entries = model.entries.get(name)
        # A table may be missing where the catalogue had no genres.
        if isinstance(entries, Computed) or name not in state:
            continue
        if entries is None:
            _check_sizes(name, tensor.shape, state[name].shape)
            tensor.copy_(state[name])
        else:
            _copy_entries(name, tensor, state[name], entries, known[entries.of])
    model.refresh()


def _copy_entries(name: str, new: Tensor, old: Tensor, entries: Entries, known: Origins) -> None:
    _check_sizes(name, new.shape, old.shape, but=entries.axis)
    new, old = new.movedim(entries.axis, 0), old.movedim(entries.axis, 0)
    first, end, old_end = entries.leading, entries.leading + known.index.size, entries.leading + known.n_before
    new[:first] = old[:first]
    new[end:] = old[old_end:]
    place = np.flatnonzero(known.index >= 0)
    new[torch.from_numpy(first + place)] = old[torch.from_numpy(first + known.index[place])]


def _check_sizes(name: str, new: torch.Size, old: torch.Size, *, but: int | None = None) -> None:
    """Compare shapes, along all axes but one."""
    if [size for axis, size in enumerate(new) if axis != but] != [size for axis, size in enumerate(old) if axis != but]:
        raise UsageError(
            f"tensor {name} is {tuple(old)} in the checkpoint and {tuple(new)} with these options; "
            "expected the checkpoint's sizes"
        )
