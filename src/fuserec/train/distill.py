"""Trains a small student to choose as a large teacher does (knowledge distillation, Hinton et al. 2015).

    loss = (1 - w) * cross-entropy(next item) + w * T^2 * KL(teacher / T || student / T)

both softmaxes being over the whole catalogue, at every position of the training sequences. What the teacher adds to
the one item that came next is how likely all the others were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fuserec.errors import DataError, UsageError
from fuserec.id_map import require_same_numbers
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_at_least
from fuserec.models.retriever import Retriever
from fuserec.models.sequential import GRU4Rec, LSTMRec, NextItNet, SASRec, Sequential
from fuserec.train.batches import Batches
from fuserec.train.data import DataSet
from fuserec.train.features import build_features
from fuserec.train.ragged import Ragged
from fuserec.train.retrieval import RetrievalTask, RetrieverRecipe, train_retriever
from fuserec.train.run import Run
from fuserec.train.sequential import RecurrentRecipe, SequentialRecipe
from fuserec.train.split import Split
from fuserec.train.teacher import Teacher
from fuserec.train.two_tower import TwoTowerRecipe, build_two_tower
from fuserec.train.windows import WindowBatch, WindowLoader


@dataclass(frozen=True)
class Distillation:
    """What learning from a teacher adds to a student's own options.

    The default weight was chosen by validation NDCG@10 on MovieLens-100K, of 0.5 and 0.9.

    Attributes:
        distill_weight: w, share of the loss that the teacher has.
        distill_temperature: T; larger values show more of what the teacher holds for unlikely.
        teacher_scale: what the teacher's dot products are multiplied by to be logits; 0 for that which it was trained
            with, which is 1 / temperature of a cosine model and 1 of the others.
    """

    distill_weight: float = 0.9
    distill_temperature: float = 2.0
    teacher_scale: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.distill_weight <= 1.0:
            raise ValueError(f"distill_weight is {self.distill_weight}; expected 0 <= distill_weight <= 1")
        if not self.distill_temperature > 0:
            raise ValueError(f"distill_temperature is {self.distill_temperature}; expected a positive number")
        check_at_least(self, 0, "teacher_scale")


@dataclass(frozen=True)
class DistilledSequential(SequentialRecipe, Distillation):
    """Options of a sequential student."""

    def __post_init__(self) -> None:
        SequentialRecipe.__post_init__(self)
        Distillation.__post_init__(self)


@dataclass(frozen=True)
class DistilledRecurrent(RecurrentRecipe, Distillation):
    """Options of a recurrent student."""

    def __post_init__(self) -> None:
        RecurrentRecipe.__post_init__(self)
        Distillation.__post_init__(self)


@dataclass(frozen=True)
class DistilledTwoTower(TwoTowerRecipe, Distillation):
    """Options of a two-tower student; `temperature` divides its cosines in both parts of the loss."""

    def __post_init__(self) -> None:
        TwoTowerRecipe.__post_init__(self)
        Distillation.__post_init__(self)


DistilledRecipe = DistilledSequential | DistilledRecurrent | DistilledTwoTower


def distillation_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, weight: float, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """Return the mean over positions of what is written above; T^2 keeps the size of the gradient as T changes.

    Args:
        student: (N, n_items) float32 logits.
        teacher: (N, n_items) float32 logits, without gradient.
        target: (N,) int64 in 0..n_items - 1, what came next.
        weight: w, from 0 to 1.
        temperature: T, positive.
        label_smoothing: of the cross-entropy.

    Returns:
        Scalar float32.
    """
    hard = functional.cross_entropy(student, target, label_smoothing=label_smoothing)
    wanted = functional.log_softmax(teacher / temperature, dim=-1)
    softened = functional.log_softmax(student / temperature, dim=-1)
    soft = functional.kl_div(softened, wanted, reduction="batchmean", log_target=True)
    return (1.0 - weight) * hard + weight * temperature**2 * soft


class DistillTask(RetrievalTask[Retriever, Any]):
    """Batches carry positions in place of items, as the teacher is asked by position."""

    items: Tensor

    def __init__(self, model: Retriever, recipe: DistilledRecipe, split: Split, teacher: Teacher) -> None:
        super().__init__(model, recipe, split)
        self.teacher = teacher
        self.scale = 1.0 / recipe.temperature if isinstance(recipe, DistilledTwoTower) else 1.0
        # Entry p + 1 is the item at flat position p of the training sequences.
        items = torch.from_numpy(np.concatenate([np.zeros(1, dtype=np.int64), split.train.values]))
        self.register_buffer("items", items, persistent=False)

    def batches(self) -> Batches:
        """The windows that the student alone would see, of 1 + position in the flat sequences."""
        train, recipe = self.split.train, self.recipe
        flat = Ragged(np.arange(1, train.values.size + 1), train.offsets)
        return WindowLoader(flat, recipe.max_history, recipe.batch_size, recipe.seed)

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """Return the loss over the positions of the batch."""
        asked = batch.target != 0
        states = self.model.positions(batch.user, self.items[batch.history])[asked]
        logits = self.scale * states @ self.model.catalogue().T
        taught = self.teacher.logits(self.teacher.vectors(batch.history[asked] - 1))
        recipe = self.recipe
        return distillation_loss(
            logits,
            taught,
            self.items[batch.target[asked]] - 1,
            weight=recipe.distill_weight,
            temperature=recipe.distill_temperature,
            label_smoothing=recipe.label_smoothing if isinstance(recipe, SequentialRecipe) else 0.0,
        )


@dataclass(frozen=True)
class Student:
    """A recipe that can be trained by a teacher.

    Attributes:
        recipe_type: its options and those of the distillation.
        plain_type: its options alone.
        builder: makes of a data set and options what builds the model for a split.
    """

    recipe_type: type[DistilledRecipe]
    plain_type: type[RetrieverRecipe]
    builder: Callable[[DataSet, Any], Callable[[Split], Retriever]]


def _sequential(
    model_type: type[Sequential],
) -> Callable[[DataSet, SequentialRecipe], Callable[[Split], Retriever]]:
    return lambda dataset, recipe: lambda split: model_type(recipe.config(n_items=split.item_ids.size))


def _two_tower(dataset: DataSet, recipe: TwoTowerRecipe) -> Callable[[Split], Retriever]:
    features = build_features(dataset.items)
    return lambda split: build_two_tower(recipe, split, features)


STUDENTS: Final[Mapping[str, Student]] = {
    "two-tower": Student(DistilledTwoTower, TwoTowerRecipe, _two_tower),
    "sasrec": Student(DistilledSequential, SequentialRecipe, _sequential(SASRec)),
    "gru4rec": Student(DistilledRecurrent, RecurrentRecipe, _sequential(GRU4Rec)),
    "lstm": Student(DistilledRecurrent, RecurrentRecipe, _sequential(LSTMRec)),
    "conv": Student(DistilledSequential, SequentialRecipe, _sequential(NextItNet)),
}


def get_student(name: str) -> Student:
    """Look a student up.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in STUDENTS:
        raise UsageError(f"student is {name!r}; expected one of {', '.join(STUDENTS)}")
    return STUDENTS[name]


def distill(name: str, teacher: Checkpoint, dataset: DataSet, recipe: DistilledRecipe, run: Run) -> Checkpoint:
    """Train a student; the checkpoint is that of its recipe trained alone, with what it was taught by in the metrics.

    Args:
        name: a key of `STUDENTS`.
        teacher: a retriever trained on the same catalogue.
        dataset: interactions and items.
        recipe: of the student's `recipe_type`.
        run: what surrounds the training.

    Raises:
        UsageError: if there is no such student, or the teacher is no retriever.
        DataError: if the teacher lacks an item of the data.
    """
    student = get_student(name)
    remedy = "train both on the same data"
    require_same_numbers(teacher.ids, "the teacher", dataset.ids, "the data", DataError, remedy)

    def task(model: Retriever, recipe: Any, split: Split) -> DistillTask:
        scale = recipe.teacher_scale or None
        return DistillTask(model, recipe, split, Teacher(teacher, split, scale=scale, progress=run.progress))

    checkpoint = train_retriever(name, dataset, recipe, student.builder(dataset, recipe), task, run)
    options = {field.name for field in dataclasses.fields(student.plain_type)}
    told = checkpoint.metrics["recipe"]
    distilled = {
        "teacher": {
            "architecture": teacher.architecture,
            "parameters": sum(parameter.numel() for parameter in teacher.module().parameters()),
            "test": teacher.metrics.get("test"),
        }
    } | {key: value for key, value in told.items() if key not in options}
    own = {key: value for key, value in told.items() if key in options}
    return dataclasses.replace(checkpoint, metrics=checkpoint.metrics | {"recipe": own, "distilled": distilled})
