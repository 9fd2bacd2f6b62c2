"""Starts training from a checkpoint: on what its users did since, or on another catalogue."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.id_map import KEEP_NUMBERS, IdMaps, disagreements, require_same_numbers
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.train.data import DataSet, read_tables
from fuserec.train.evaluation import evaluate
from fuserec.train.split import Split
from fuserec.train.transplant import origins, transplant

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A checkpoint to start from in place of random weights.

    Attributes:
        checkpoint: of the architecture that is trained.
        keep_ids: True to continue, where an id names the same user or item as before; False to transfer, where ids are
            learned anew and all else is kept.
    """

    checkpoint: Checkpoint
    keep_ids: bool

    def recipe_name(self) -> str:
        """Return the name of the recipe that made the checkpoint: its architecture's, unless it says otherwise."""
        return str(self.checkpoint.metrics.get("recipe_name", self.checkpoint.architecture))

    def options(self, recipe_type: type[Any]) -> dict[str, object]:
        """Return the options of a recipe that follow from the checkpoint; the others stay at their defaults.

        All that it was trained with if training continues, those of its architecture on another catalogue.

        Raises:
            CheckpointError: if training is to continue and the checkpoint does not say how it was trained.
        """
        names = {field.name for field in dataclasses.fields(recipe_type)}
        given: Any = self.checkpoint.arguments
        if self.keep_ids:
            given = self.checkpoint.metrics.get("recipe")
            if not isinstance(given, dict) or not given.keys() <= names:
                raise CheckpointError(
                    f"metrics.json: recipe is {given!r}; expected the options of {self.recipe_name()}: "
                    f"{', '.join(sorted(names))}"
                )
        return {name: value for name, value in given.items() if name in names}


@dataclass(frozen=True)
class Planted:
    """The weights that training starts with, a candidate like those of any epoch.

    Attributes:
        state: state dict, a copy.
        scores: "validation" and "test" before any training.
        note: name in `metrics.json` of what is told of the start.
    """

    state: dict[str, Tensor]
    scores: dict[str, dict[str, float]]
    note: str

    def choose(
        self, state: dict[str, Tensor], metrics: dict[str, Any], monitor: str, *, may_stay: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return weights and metrics of the start, as epoch 0, if it may stay and training did not lift `monitor`."""
        metrics = metrics | {self.note: {"before": self.scores}}
        if not may_stay or metrics["validation"][monitor] > self.scores["validation"][monitor]:
            return state, metrics
        return self.state, metrics | self.scores | {"best_epoch": 0}


def plant(start: Start, architecture: str, model: Retriever, dataset: DataSet, split: Split) -> Planted:
    """Put a checkpoint's weights into a model, and score it before it is trained.

    Args:
        start: where the weights come from.
        architecture: name of what `model` is.
        model: freshly built for the data set; changed in place.
        dataset: what is trained on.
        split: of the data set.

    Raises:
        UsageError: if the checkpoint is of another architecture or size, or training goes on from it and it numbers
            its ids differently.
    """
    checkpoint = start.checkpoint
    if checkpoint.architecture != architecture:
        raise UsageError(
            f"the checkpoint to start from is a {checkpoint.architecture}; "
            f"expected a {architecture}, which is what the recipe makes"
        )
    told = disagreements(checkpoint.ids, "the checkpoint", dataset.ids, "the data")
    if told and start.keep_ids:
        raise UsageError(f"the checkpoint and the data number their ids differently: {'; '.join(told)}; {KEEP_NUMBERS}")
    if told:
        logger.warning("another catalogue, whose ids are learned anew: %s", "; ".join(told))
    known = origins(checkpoint, dataset.items, split.user_ids, keep_ids=start.keep_ids)
    transplant(model, checkpoint.state, known)
    scores = {
        "validation": evaluate(model, split, split.validation_histories, split.validation_targets),
        "test": evaluate(model, split, split.test_histories, split.test_targets),
    }
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Planted(state, scores, "continued" if start.keep_ids else "transferred")


def read_since(checkpoint: Checkpoint, folder: Path) -> DataSet:
    """Read a data folder of what happened since a checkpoint was trained, and join it to what it knows.

    Raises:
        DataError: if the two number their ids differently, or as `read_folder`; here a user may have a single
            interaction, and an item of the checkpoint's catalogue need not be listed again.
    """
    ids = IdMaps.read(folder, DataError)
    require_same_numbers(checkpoint.ids, "the checkpoint", ids, folder, DataError, KEEP_NUMBERS)
    dataset = continue_data(checkpoint, *read_tables(folder))
    return dataclasses.replace(dataset, ids=checkpoint.ids.joined(ids))


def continue_data(checkpoint: Checkpoint, interactions: pl.DataFrame, items: pl.DataFrame) -> DataSet:
    """Join what happened since to what a checkpoint knows.

    A checkpoint stores whole histories without times or ratings. So the old interactions get the time of the first new
    one and stand before it, in their order, and their rating is null where the new ones have ratings. A user whose new
    interactions begin with the stored history is told as a whole by the new ones.

    Args:
        checkpoint: what was known.
        interactions: as in `DataSet`, what happened since.
        items: as in `DataSet`, the catalogue as it is now; items that it does not list stay as they were.

    Raises:
        DataError: if the two do not fit each other.
    """
    retold = _retold(checkpoint.users, interactions)
    stored = checkpoint.users.filter(~pl.col("user_id").is_in(retold.implode())).explode("history")
    earliest = interactions["timestamp"].min()
    old = stored.drop_nulls().select("user_id", item_id="history", timestamp=pl.lit(earliest, dtype=pl.Int64))
    gone = checkpoint.items.drop("count").join(items, on="item_id", how="anti")
    catalogue = pl.concat([items, gone], how="diagonal").sort("item_id")
    if "text" in catalogue.columns:
        catalogue = catalogue.with_columns(pl.col("text").fill_null(""))
    return DataSet(pl.concat([old, interactions], how="diagonal"), catalogue)


def _retold(users: pl.DataFrame, interactions: pl.DataFrame) -> pl.Series:
    """Return the ids of users whose interactions, in order of time, begin with all that is stored of them."""
    ordered = interactions.sort("user_id", "timestamp", maintain_order=True)
    told = ordered.group_by("user_id", maintain_order=True).agg(now="item_id")
    both = users.join(told, on="user_id")
    begins = pl.col("now").list.head(pl.col("history").list.len()) == pl.col("history")
    return both.filter(begins)["user_id"]
