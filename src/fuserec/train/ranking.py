"""Trains the deep rankers: next item, click and rating at once, over shared embeddings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from fuserec.errors import DataError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_at_least
from fuserec.models.ranker import HEADS, TASKS, Ranker, RankerConfig, parse_tasks
from fuserec.models.retriever import PADDING
from fuserec.train.data import DataSet
from fuserec.train.features import WORDS_PER_ITEM, CatalogueFeatures, build_features
from fuserec.train.negatives import consumption_keys, pairs_are_consumed
from fuserec.train.ranking_data import RatedBatch, RatedWindows, Ratings, prefixes, split_ratings
from fuserec.train.ranking_metrics import CLICK_PROTOCOL, catalogue_metrics, ranker_metrics, rating_metrics
from fuserec.train.retrieval import MONITOR, RetrievalTask, RetrieverRecipe, train_retriever
from fuserec.train.run import Run
from fuserec.train.split import Split, leave_one_out

AUTO: Final = "auto"
# Share of the squared error of always saying the mean that a ranker of ratings alone removes.
RATING_MONITOR: Final = "explained"
WEIGHT_OPTIONS: Final = {"next-item": "next_item_weight", "click": "click_weight", "rating": "rating_weight"}


@dataclass(frozen=True)
class RankerRecipe(RetrieverRecipe):
    """Training options; the defaults were chosen by validation NDCG@10 on MovieLens-100K. A batch is of windows.

    Attributes:
        tasks: what is learned, separated by commas: next-item (cross-entropy over the catalogue), click (binary
            cross-entropy of consumed against other items), rating (squared error); "auto" is all that the data allow.
        next_item_weight: weight of the loss of this task in the sum.
        click_weight: as above.
        rating_weight: as above.
        n_negatives: items drawn uniformly for each consumed one.
        n_ranked: positions of a window, on average, at which click and rating are learned; all are for next-item.
        hidden: width of the layers on a user and a candidate.
        temperature: divides the cosine of user and item vector.
        n_heads: heads of target attention; divides `dim`.
        n_blocks: recurrent layers over the history.
        dropout: of activations.
        user_dropout: how often the user id is hidden, so that the model also serves users it has never seen.
    """

    epochs: int = 30
    patience: int = 6
    dim: int = 64
    tasks: str = AUTO
    next_item_weight: float = 1.0
    click_weight: float = 1.0
    rating_weight: float = 0.1
    n_negatives: int = 16
    n_ranked: int = 8
    hidden: int = 64
    temperature: float = 0.1
    n_heads: int = 2
    n_blocks: int = 1
    dropout: float = 0.3
    user_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "n_negatives", "n_ranked")
        for name in WEIGHT_OPTIONS.values():
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number (tasks says what to do)")
        if self.tasks != AUTO:
            parse_tasks(self.tasks)
        self.config(n_users=1, n_items=1)

    def config(
        self, *, n_users: int, n_items: int, n_genres: int = 0, n_words: int = 0, n_years: int = 0
    ) -> RankerConfig:
        """Return the architecture that these options give for vocabularies of these sizes."""
        return RankerConfig(
            n_users=n_users,
            n_items=n_items,
            dim=self.dim,
            max_history=self.max_history,
            n_genres=n_genres,
            n_words=n_words,
            n_years=n_years,
            words_per_item=WORDS_PER_ITEM,
            n_heads=self.n_heads,
            n_blocks=self.n_blocks,
            dropout=self.dropout,
            user_dropout=self.user_dropout,
            hidden=self.hidden,
            temperature=self.temperature,
            tasks=",".join(HEADS) if self.tasks == AUTO else self.tasks,
        )


def task_options(tasks: str | None = None, weights: str | None = None) -> dict[str, object]:
    """Turn `--tasks next-item,click --task-weights 1,0.5` into options of a recipe.

    Raises:
        UsageError: if there are weights without tasks, not one weight a task, a weight is no number or its task is
            unknown; without weights, it is the recipe that checks the names.
    """
    if tasks is None:
        if weights is not None:
            raise UsageError(f"--task-weights came as {weights!r} without --tasks; expected both")
        return {}
    options: dict[str, object] = {"tasks": tasks}
    if weights is None:
        return options
    names, values = [name.strip() for name in tasks.split(",")], weights.split(",")
    if len(names) != len(values):
        raise UsageError(f"--task-weights has {len(values)} numbers for {len(names)} tasks; expected one a task")
    for name, value in zip(names, values, strict=True):
        if name not in WEIGHT_OPTIONS:
            raise UsageError(f"--tasks names {name!r}; expected one of {', '.join(WEIGHT_OPTIONS)}")
        try:
            options[WEIGHT_OPTIONS[name]] = float(value)
        except ValueError:
            raise UsageError(f"--task-weights has {value!r} for {name}; expected a number") from None
    return options


class RankerTask(RetrievalTask[Ranker, RankerRecipe]):
    """The weighted sum of the losses of the tasks."""

    consumed: Tensor

    def __init__(self, model: Ranker, recipe: RankerRecipe, split: Split, ratings: Ratings) -> None:
        super().__init__(model, recipe, split)
        self.ratings = ratings
        self.tasks = parse_tasks(model.config.tasks)
        self.monitor = MONITOR if "click" in self.tasks else RATING_MONITOR
        self.register_buffer("consumed", consumption_keys(split.train, model.config.n_items))

    def batches(self) -> RatedWindows:
        """Windows with ratings."""
        recipe = self.recipe
        train = self.split.train
        return RatedWindows(train, self.ratings.train, recipe.max_history, recipe.batch_size, recipe.seed)

    def training_step(self, batch: RatedBatch, batch_idx: int) -> Tensor:
        """Return the loss; the catalogue is encoded once and looked up by all tasks."""
        recipe, tower = self.recipe, self.model.rank_tower
        states = self.model.positions(batch.user, batch.history)
        table = tower.describe(torch.arange(self.model.config.n_items + 1, device=self.device))
        losses: list[Tensor] = []
        if "next-item" in self.tasks:
            asked = batch.target != PADDING
            logits = states[asked] @ table[0][1:].T / recipe.temperature
            losses.append(recipe.next_item_weight * functional.cross_entropy(logits, batch.target[asked] - 1))
        ranked = self._ranked_positions(batch)
        target = batch.target[ranked]
        negatives = self._draw(target.numel()) if "click" in self.tasks else target.new_empty(target.numel(), 0)
        said = self._score(batch, states, ranked, torch.cat([target[:, None], negatives], dim=1), table)
        if "click" in self.tasks:
            losses.append(recipe.click_weight * self._click_loss(said[..., 0], batch.user[ranked[0]], negatives))
        if "rating" in self.tasks:
            losses.append(recipe.rating_weight * self._rating_loss(said[:, 0, 1], batch.rating[ranked]))
        return torch.stack(losses).sum()

    def _ranked_positions(self, batch: RatedBatch) -> tuple[Tensor, Tensor]:
        """Choose positions at random: rows and columns, (N,) int64 each."""
        window, position = (batch.target != PADDING).nonzero(as_tuple=True)
        chosen = torch.randperm(window.numel(), device=window.device)[: self.recipe.n_ranked * batch.user.numel()]
        return window[chosen], position[chosen]

    def _draw(self, count: int) -> Tensor:
        shape = (count, self.recipe.n_negatives)
        return torch.randint(1, self.model.config.n_items + 1, shape, device=self.device)

    def _score(
        self,
        batch: RatedBatch,
        states: Tensor,
        ranked: tuple[Tensor, Tensor],
        candidates: Tensor,
        table: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Return what the rank tower says of (N, C) candidates at N positions, (N, C, 2)."""
        past = prefixes(batch.history, *ranked)
        # Look-ups as embeddings, whose gradient is summed in a fixed order, unlike indexing's.
        items, features = (functional.embedding(candidates, part) for part in table)
        scores: Tensor = self.model.rank_tower.score(
            states[ranked], items, features, functional.embedding(past, table[0]), past != PADDING
        )
        return scores

    def _click_loss(self, logits: Tensor, user: Tensor, negatives: Tensor) -> Tensor:
        """Binary cross-entropy over (N, 1 + n_negatives) logits, without negatives that the user consumed.

        The logits are those of an even chance of either label; the offset makes of it the chance in the sample.
        """
        n_items = self.model.config.n_items
        is_negative = ~pairs_are_consumed(self.consumed, user[:, None], negatives, n_items)
        label = torch.zeros_like(logits)
        label[:, 0] = 1.0
        counted = torch.cat([torch.ones_like(is_negative[:, :1]), is_negative], dim=1)
        offset = math.log(self.recipe.n_negatives)
        return functional.binary_cross_entropy_with_logits(logits - offset, label, weight=counted.float())

    def _rating_loss(self, said: Tensor, given: Tensor) -> Tensor:
        """Squared error in standard deviations, over what is rated; 0 if nothing is."""
        rated = given.isfinite()
        error = (said - torch.where(rated, given, said)) / self.model.rank_tower.rating_scale
        loss: Tensor = error.square().sum() / rated.sum().clamp(min=1)
        return loss

    def validation_scores(self) -> dict[str, float]:
        """Score the head that candidates are ordered by."""
        split = self.split
        part = (split.validation_histories, split.validation_targets)
        if self.monitor == MONITOR:
            return catalogue_metrics(self.model, split, *part)
        scores = rating_metrics(self.model, split, *part, self.ratings.validation, self.ratings.mean)
        return {RATING_MONITOR: 1.0 - scores["mse"] / scores["mse_of_mean"] if scores else 0.0}


def ranker_trainer(architecture: str, model_type: type[Ranker]) -> Callable[..., Checkpoint]:
    """Return the `train(dataset, recipe, run)` of one of the rankers.

    In the metrics, "validation" and "test" are of the ranker; "retrieval" holds those of its two towers alone.
    """

    def train(dataset: DataSet, recipe: RankerRecipe, run: Run) -> Checkpoint:
        split = leave_one_out(dataset)
        ratings = split_ratings(dataset, split)
        recipe = dataclasses.replace(recipe, tasks=",".join(_tasks(recipe, ratings)))
        features = build_features(dataset.items)

        def build(split: Split) -> Ranker:
            return _build(model_type, recipe, split, features, ratings)

        def task(model: Ranker, recipe: RankerRecipe, split: Split) -> RankerTask:
            return RankerTask(model, recipe, split, ratings)

        checkpoint = train_retriever(architecture, dataset, recipe, build, task, run)
        return dataclasses.replace(checkpoint, metrics=_metrics(checkpoint, split, ratings))

    return train


def _tasks(recipe: RankerRecipe, ratings: Ratings) -> tuple[str, ...]:
    if recipe.tasks == AUTO:
        return TASKS if ratings.exist else tuple(task for task in TASKS if task != "rating")
    tasks = parse_tasks(recipe.tasks)
    if "rating" in tasks and not ratings.exist:
        raise DataError(
            "the interactions hold no rating to learn the task rating from; expected a column rating with numbers, "
            "or tasks without it"
        )
    return tasks


def _build(
    model_type: type[Ranker], recipe: RankerRecipe, split: Split, features: CatalogueFeatures, ratings: Ratings
) -> Ranker:
    model = model_type(
        recipe.config(
            n_users=split.user_ids.size,
            n_items=split.item_ids.size,
            n_genres=features.n_genres,
            n_words=features.n_words,
            n_years=features.n_years,
        )
    )
    tower = model.rank_tower
    tower.item_features.genres.copy_(features.genres)
    tower.item_features.words.copy_(features.words)
    tower.item_features.years.copy_(features.years)
    if "rating" in model.heads:
        tower.rating_mean.fill_(ratings.mean)
        tower.rating_scale.fill_(ratings.scale)
    return model


def _metrics(checkpoint: Checkpoint, split: Split, ratings: Ratings) -> dict[str, Any]:
    model = checkpoint.module()
    assert isinstance(model, Ranker)
    towers = checkpoint.metrics
    return towers | {
        "validation": ranker_metrics(
            model, split, ratings, split.validation_histories, split.validation_targets, ratings.validation
        ),
        "test": ranker_metrics(model, split, ratings, split.test_histories, split.test_targets, ratings.test),
        "retrieval": {part: towers[part] for part in ("validation", "test")},
        "click_protocol": CLICK_PROTOCOL,
        "tasks": list(parse_tasks(model.config.tasks)),
    }
