"""Makes a smaller checkpoint of a trained one: layers dropped, hidden units masked, and what is left fine-tuned.

Fine-tuning takes the recipe that the checkpoint was trained by, and the histories that it stores: of each user the
last two items are held out, as they were, so that what is told of it can be compared.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from fuserec.errors import CheckpointError, UsageError
from fuserec.id_map import require_same_numbers
from fuserec.models import depth
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.pruning import drop_masked_, mask_
from fuserec.models.ranker import Ranker
from fuserec.models.retriever import Retriever
from fuserec.train.data import MIN_INTERACTIONS, DataSet, read_folder
from fuserec.train.evaluation import evaluate
from fuserec.train.ranking_metrics import catalogue_metrics
from fuserec.train.recipes import get_recipe
from fuserec.train.retrieval import MONITOR, users_table
from fuserec.train.run import Run
from fuserec.train.split import Split, leave_one_out
from fuserec.train.start import Start
from fuserec.train.text import TextRecipe, tune

Scores = dict[str, dict[str, float]]

NO_TUNING: Final = "; give --fine-tune-epochs 0 to leave it as it is"
# What is told in metrics of weights that are no more.
STALE: Final = ("validation", "test", "retrieval", "pruning")
# Recipes whose training starts from a pretrained encoder and nothing else.
ONLY_ANEW: Final = {
    "dialogue": "learns from conversations, which no checkpoint holds",
    "ranker-text": "can only be trained anew (try --set n_layers)",
}

logger = logging.getLogger(__name__)


def make_smaller(
    checkpoint: Checkpoint,
    *,
    prune: float = 0.0,
    drop_layers: int = 0,
    epochs: int = 2,
    seed: int = 0,
    data: Path | None = None,
    progress: bool = True,
) -> Checkpoint:
    """Drop layers, prune and fine-tune.

    Whether what fine-tuning made is kept is decided by the validation items, so it never harms by them.

    Args:
        checkpoint: the trained model.
        prune: share of the hidden units of feed-forward pairs that is masked; 0 <= prune < 1.
        drop_layers: layers that are dropped, the last ones.
        epochs: of fine-tuning; with 0 there is none.
        seed: of dropout and the order of examples while fine-tuning.
        data: the data folder that the checkpoint was trained on, for recipes that learn from more than histories.
        progress: whether a bar is shown.

    Returns:
        A checkpoint whose metrics tell, as "shrunk", what was done and what it scored before, untuned and after.

    Raises:
        UsageError: if nothing is asked for, the architecture has nothing of the kind to take out, or it cannot be
            fine-tuned; the message says what it has.
        CheckpointError: if it is to be fine-tuned and does not say how it was trained.
    """
    if not prune and not drop_layers:
        raise UsageError(
            "neither units to prune nor layers to drop came; expected prune above 0 or drop_layers above 0"
        )
    if epochs < 0:
        raise UsageError(f"fine-tune-epochs is {epochs}; expected at least 0")
    shallow = depth.drop_layers(checkpoint, drop_layers) if drop_layers else checkpoint
    untuned = _without_units(shallow, prune)
    recipe = _recipe(untuned, prune, epochs, seed, data) if epochs else None
    dataset = _trained_on(checkpoint, data)
    split = None if dataset is None else leave_one_out(dataset)
    scores = {"before": _scores(checkpoint, split), "untuned": _scores(untuned, split)}
    untuned = dataclasses.replace(untuned, metrics=_untuned_metrics(untuned, scores["untuned"], prune))
    smaller = untuned
    if recipe is not None:
        if dataset is None:
            raise UsageError(f"the checkpoint holds no histories to fine-tune on{NO_TUNING}")
        smaller = _tuned(untuned, dataset, recipe, Run(progress=progress))
    pair = {"before": checkpoint, "after": smaller}
    shrunk = {
        "prune": prune,
        "dropped_layers": drop_layers,
        "epochs": epochs,
        "fine_tuned": smaller is not untuned,
        **scores,
        "after": scores["untuned"] if smaller is untuned else _scores(smaller, split),
        "parameters": {name: _parameters(one, masked=False) for name, one in pair.items()},
    }
    return dataclasses.replace(smaller, metrics=smaller.metrics | {"shrunk": shrunk})


def _without_units(checkpoint: Checkpoint, share: float) -> Checkpoint:
    if not share:
        return checkpoint
    if not 0.0 < share < 1.0:
        raise UsageError(f"prune is {share}; expected 0 <= prune < 1")
    module = checkpoint.module()
    if not mask_(module, share):
        raise UsageError(
            f"prune is {share}, but this {checkpoint.architecture} has no two linear layers in a row; expected prune=0"
        )
    if isinstance(module, Retriever):
        module.refresh()
    return dataclasses.replace(checkpoint, state=module.state_dict())


def _recipe(checkpoint: Checkpoint, prune: float, epochs: int, seed: int, data: Path | None) -> Any:
    """Return the options that what was made smaller had been trained by, changed for fine-tuning.

    Raises:
        UsageError, CheckpointError: as `make_smaller`.
    """
    start = Start(checkpoint, keep_ids=True)
    name = start.recipe_name()
    if name in ONLY_ANEW:
        raise UsageError(f"{name} {ONLY_ANEW[name]}{NO_TUNING}")
    if "privacy" in checkpoint.metrics:
        raise UsageError(f"the checkpoint was trained privately, which fine-tuning would undo{NO_TUNING}")
    recipe = get_recipe(name)
    try:
        told = start.options(recipe.config_type)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{NO_TUNING}") from None
    if "rating" in str(told.get("tasks", "")).split(",") and data is None:
        raise UsageError(f"{name} learns ratings, which no checkpoint holds; give --data DIR, what it was trained on")
    changed: dict[str, object] = {"epochs": epochs, "seed": seed}
    if share := max(prune, _pruned_share(checkpoint.metrics)):
        changed |= {"prune": share, "prune_epoch": 1}
    if recipe.config_type is TextRecipe:
        # Adapters are there already; and what was frozen is not made for having fewer layers.
        tuning = told.get("tuning") if told.get("tuning") in ("top", "full") else "lora"
        top = min(int(str(told.get("top_layers", 1))), depth.count_layers(checkpoint))
        changed |= {"tuning": tuning, "top_layers": top, "tuning_epochs": epochs}
    return recipe.options(told | _depth(checkpoint, told) | changed)


def _depth(checkpoint: Checkpoint, told: Mapping[str, object]) -> dict[str, object]:
    """Return the options of a recipe that say how many layers a checkpoint has; of its transformer there is none."""
    if "n_blocks" not in told or "encoder" in checkpoint.arguments:
        return {}
    return {"n_blocks": depth.count_layers(checkpoint)}


def _tuned(smaller: Checkpoint, dataset: DataSet, recipe: Any, run: Run) -> Checkpoint:
    """Fine-tune; return what came if it is no better by its validation."""
    if isinstance(recipe, TextRecipe):
        tuned = tune(dataset, recipe, smaller, run)
    else:
        start = Start(smaller, keep_ids=True)
        tuned = get_recipe(start.recipe_name()).train(dataset, recipe, dataclasses.replace(run, start=start))
    told: dict[str, Any] = {name: value for name, value in tuned.metrics.items() if name != "continued"}
    # A ranker of ratings alone has none of these.
    before, after = (metrics["validation"].get(MONITOR) for metrics in (smaller.metrics, told))
    if before is not None and after is not None and after <= before:
        logger.warning("fine-tuning took the validation %s from %.4f to %.4f; what it started from is kept",
                       MONITOR, before, after)  # fmt: skip
        return smaller
    return dataclasses.replace(tuned, metrics=told)


def _untuned_metrics(checkpoint: Checkpoint, scores: Scores, prune: float) -> dict[str, Any]:
    """Return the metrics of a checkpoint that was made smaller, with its own scores and with a recipe that fits it."""
    metrics = {name: value for name, value in checkpoint.metrics.items() if name not in STALE}
    told = metrics.get("recipe")
    if isinstance(told, dict):
        size = _depth(checkpoint, told)
        if share := max(prune, _pruned_share(metrics)):
            size |= {"prune": share, "prune_epoch": 1}
        metrics["recipe"] = told | size
    return metrics | scores | {"parameters": _parameters(checkpoint, masked=True)}


def _pruned_share(metrics: Mapping[str, Any]) -> float:
    """Return the share that training masked, by what the recipe says."""
    told = metrics.get("recipe")
    return float(told.get("prune", 0.0)) if isinstance(told, dict) else 0.0


def _trained_on(checkpoint: Checkpoint, folder: Path | None) -> DataSet | None:
    """Return what a checkpoint was trained on: a data folder, or its own histories; None where they are too short.

    Raises:
        UsageError: if the folder holds other histories, whose held-out items may have been learned from.
    """
    if folder is None:
        return own_data(checkpoint)
    dataset = read_folder(folder)
    require_same_numbers(checkpoint.ids, "the checkpoint", dataset.ids, folder, UsageError, "expected its own data")
    same_items = dataset.items["item_id"].equals(checkpoint.items["item_id"])
    if not same_items or not users_table(leave_one_out(dataset)).equals(checkpoint.users):
        raise UsageError(
            f"{folder} does not hold the items and histories that the checkpoint was trained on; expected those (new "
            "ones are for fuserec train --continue)"
        )
    return dataset


def own_data(checkpoint: Checkpoint) -> DataSet | None:
    """Return the interactions that a checkpoint stores, without ratings; None if nobody has enough to be evaluated.

    Times are places in the history: `leave_one_out` holds out what it held out when the checkpoint was trained.
    """
    lengths = checkpoint.users["history"].list.len()
    if not (lengths >= MIN_INTERACTIONS).any():
        return None
    times = checkpoint.users.with_columns(timestamp=pl.int_ranges(lengths.cast(pl.Int64)))
    interactions = times.filter(lengths > 0).explode("history", "timestamp").rename({"history": "item_id"})
    told = interactions.select("user_id", "item_id", "timestamp")
    return DataSet(told, checkpoint.items.drop("count"), ids=checkpoint.ids)


def _scores(checkpoint: Checkpoint, split: Split | None) -> Scores:
    """Rank the catalogue for the held-out items; nothing where there are none, or nothing ranks a catalogue."""
    model = checkpoint.module()
    if split is None or not isinstance(model, Retriever):
        return {}
    parts = {
        "validation": (split.validation_histories, split.validation_targets),
        "test": (split.test_histories, split.test_targets),
    }
    if isinstance(model, Ranker):
        return {name: catalogue_metrics(model, split, *part) for name, part in parts.items()}
    return {name: evaluate(model, split, *part) for name, part in parts.items()}


def _parameters(checkpoint: Checkpoint, *, masked: bool) -> int:
    """Count parameters, with those of masked units, or without as they are exported."""
    module = checkpoint.module()
    if not masked:
        drop_masked_(module)
    return sum(parameter.numel() for parameter in module.parameters())
