"""A student learns from a teacher what the data alone tells it less well."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import DataSet
from fuserec.train.distill import STUDENTS, DistillTask, distill, distillation_loss, get_student
from fuserec.train.recipes import RECIPES, distilled, parse_settings
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out
from fuserec.train.start import Start
from fuserec.train.teacher import Teacher
from fuserec.train.windows import WindowLoader

SMALL = {"dim": 8, "max_history": 8, "batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 0}
QUIET = Run(progress=False)


@pytest.fixture(scope="module")
def teacher(cyclic: DataSet) -> Checkpoint:
    recipe = RECIPES["gru4rec"].options(SMALL | {"dim": 32, "epochs": 15, "dropout": 0.0})
    checkpoint = RECIPES["gru4rec"].train(cyclic, recipe, QUIET)
    assert checkpoint.metrics["test"]["ndcg@10"] > 0.8
    return checkpoint


def options(name: str, **given: Any) -> Any:
    return get_student(name).recipe_type(**SMALL | given)


def test_the_loss_is_what_the_formula_says() -> None:
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    target = torch.tensor([1])

    def softmax(logits: list[float]) -> list[float]:
        total = sum(math.exp(value) for value in logits)
        return [math.exp(value) / total for value in logits]

    p, q = softmax([2.0, 0.0]), softmax([0.0, 1.0])  # at T = 2
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = 0.75 * -math.log(softmax([0.0, 2.0])[1]) + 0.25 * 4 * divergence
    found = distillation_loss(student, teacher, target, weight=0.25, temperature=2.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert distillation_loss(teacher, teacher, target, weight=1.0, temperature=3.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_students_learn_from_the_teacher_alone(name: str, teacher: Checkpoint, cyclic: DataSet) -> None:
    """With weight 1 no target is seen, and the rule is learned all the same."""
    recipe = options(name, epochs=6, dropout=0.0, distill_weight=1.0)
    checkpoint = distill(name, teacher, cyclic, recipe, QUIET)
    assert checkpoint.architecture == name
    assert checkpoint.arguments["dim"] == 8
    assert checkpoint.metrics["test"]["ndcg@10"] > 0.3


def test_the_metrics_tell_the_teacher_and_the_checkpoint_is_the_students_own(
    teacher: Checkpoint, cyclic: DataSet
) -> None:
    checkpoint = distill("sasrec", teacher, cyclic, options("sasrec", epochs=1, distill_temperature=3.0), QUIET)
    told = checkpoint.metrics["distilled"]
    assert told["teacher"]["architecture"] == "gru4rec"
    assert told["teacher"]["test"] == teacher.metrics["test"]
    assert (told["distill_weight"], told["distill_temperature"], told["teacher_scale"]) == (0.9, 3.0, 0.0)
    start = Start(checkpoint, keep_ids=True)
    plain = RECIPES[start.recipe_name()].options(start.options(RECIPES[start.recipe_name()].config_type))
    assert plain == RECIPES["sasrec"].options(SMALL | {"epochs": 1})


def test_without_the_teacher_a_student_is_what_it_is_alone(teacher: Checkpoint, cyclic: DataSet) -> None:
    given = {"epochs": 3, "dropout": 0.0, "label_smoothing": 0.1}
    taught = distill("gru4rec", teacher, cyclic, options("gru4rec", distill_weight=0.0, **given), QUIET)
    alone = RECIPES["gru4rec"].train(cyclic, RECIPES["gru4rec"].options(SMALL | given), QUIET)
    for name, tensor in alone.state.items():
        torch.testing.assert_close(taught.state[name], tensor, atol=1e-3, rtol=1e-3)


def test_batches_are_those_of_the_student_alone(teacher: Checkpoint, cyclic: DataSet) -> None:
    split = leave_one_out(cyclic)
    recipe = options("gru4rec", seed=3)
    model: Any = get_student("gru4rec").builder(cyclic, recipe)(split)
    task = DistillTask(model, recipe, split, Teacher(teacher, split))
    for taught, alone in zip(task.batches(), WindowLoader(split.train, 8, 16, 3), strict=True):
        assert torch.equal(task.items[taught.history], alone.history)
        assert torch.equal(task.items[taught.target], alone.target)
        assert torch.equal(taught.user, alone.user)


def test_a_distilled_recipe_takes_the_options_of_student_and_teacher(teacher: Checkpoint) -> None:
    recipe = distilled("sasrec", teacher)
    chosen = recipe.options(parse_settings(recipe, ["dim=8", "n_blocks=1", "distill_weight=0.9"]))
    assert (chosen.dim, chosen.n_blocks, chosen.distill_weight) == (8, 1, 0.9)
    with pytest.raises(UsageError, match="expected 0 <= distill_weight <= 1"):
        recipe.options({"distill_weight": 2.0})


def test_an_unknown_student_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="student is 'mf'; expected one of two-tower, sasrec, gru4rec, lstm, conv"):
        get_student("mf")


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("distill_weight", 1.5, "distill_weight is 1.5"),
        ("distill_temperature", 0.0, "distill_temperature is 0.0"),
        ("teacher_scale", -1.0, "teacher_scale is -1.0"),
        ("epochs", 0, "epochs is 0"),
        ("n_heads", 3, "multiple of n_heads"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(get_student(name).recipe_type(), **{field: value})
