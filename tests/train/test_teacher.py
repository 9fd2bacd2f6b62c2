"""The teacher says at every training position what its own user tower says of the history up to there."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.errors import DataError, UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import DataSet
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run
from fuserec.train.split import Split, leave_one_out
from fuserec.train.teacher import Teacher, trained_scale

LENGTH = 5


def train(name: str, dataset: DataSet) -> Checkpoint:
    options: dict[str, Any] = {"dim": 8, "max_history": LENGTH, "epochs": 1}
    return RECIPES[name].train(dataset, RECIPES[name].options(options), Run(progress=False))


@pytest.fixture(scope="module")
def split(cyclic: DataSet) -> Split:
    return leave_one_out(cyclic)


@pytest.fixture(scope="module", params=["gru4rec", "sasrec", "two-tower", "bert4rec", "mf"])
def checkpoint(request: pytest.FixtureRequest, cyclic: DataSet) -> Checkpoint:
    return train(request.param, cyclic)


def asked(checkpoint: Checkpoint, split: Split, position: int, past: int) -> torch.Tensor:
    """Return what the model says of one position if it sees `past` items, by its user tower."""
    module: Any = checkpoint.module()
    row = int(split.train.row_of_value[position])
    first = max(int(split.train.offsets[row]), position + 1 - past)
    history = torch.from_numpy(split.train.values[first : position + 1])
    padded = torch.nn.functional.pad(history, (LENGTH - len(history), 0))
    with torch.no_grad():
        vector: torch.Tensor = module.user_tower(torch.tensor([row + 1]), padded[None])[0]
    return vector


def test_every_position_is_read_with_at_least_half_the_longest_history(checkpoint: Checkpoint, split: Split) -> None:
    teacher = Teacher(checkpoint, split)
    assert teacher.table is not None and teacher.table.dtype == torch.float16
    some = np.r_[0:40, split.train.values.size - 20 : split.train.values.size]
    found = teacher.vectors(torch.from_numpy(some))
    # Windows of 5 overlap by 2: the first position a window says is its third, which sees 3 items; the last sees 5.
    within = (some - split.train.offsets[split.train.row_of_value[some]]) % 3
    for vector, position, place in zip(found, some, within, strict=True):
        expected = asked(checkpoint, split, int(position), past=3 + int(place))
        torch.testing.assert_close(vector, expected, atol=5e-3, rtol=5e-3)  # float16


def test_beyond_the_memory_it_is_asked_each_time_and_sees_all_it_can(checkpoint: Checkpoint, split: Split) -> None:
    teacher = Teacher(checkpoint, split, memory_bytes=1000)
    assert teacher.table is None
    some = torch.tensor([0, 3, 4, 11, split.train.values.size - 1])
    for vector, position in zip(teacher.vectors(some), some.tolist(), strict=True):
        expected = asked(checkpoint, split, position, past=LENGTH)
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


def test_items_are_matched_by_id(cyclic: DataSet) -> None:
    """The data lists every other item; its rows are not the teacher's."""
    teacher_checkpoint = train("gru4rec", cyclic)
    kept = cyclic.items.filter(pl.col("item_id") % 2 == 0)
    known = cyclic.interactions.filter(pl.col("item_id") % 2 == 0)
    split = leave_one_out(DataSet(known, kept))
    teacher = Teacher(teacher_checkpoint, split)
    table = teacher_checkpoint.state["user_tower.item_embedding.weight"]
    assert torch.equal(teacher.item_vectors, table[1::2])
    assert np.array_equal(teacher.sequences.values, 2 * split.train.values - 1)


def test_a_teacher_that_lacks_items_is_refused(cyclic: DataSet) -> None:
    teacher_checkpoint = train("gru4rec", cyclic)
    extra = cyclic.items.tail(1).with_columns(item_id=pl.lit(1000, dtype=pl.Int64))
    split = leave_one_out(DataSet(cyclic.interactions, pl.concat([cyclic.items, extra])))
    with pytest.raises(DataError, match="the teacher lacks 1 of 61 items, such as 1000"):
        Teacher(teacher_checkpoint, split)


def test_a_teacher_that_finds_no_items_is_refused(
    cyclic: DataSet, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher_checkpoint = train("gru4rec", cyclic)
    monkeypatch.setattr(Checkpoint, "module", lambda self: torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="the teacher is a gru4rec, which has no vectors of users and items"):
        Teacher(teacher_checkpoint, split)


def test_a_teacher_that_knows_the_future_is_told_of(cyclic: DataSet, caplog: pytest.LogCaptureFixture) -> None:
    teacher_checkpoint = train("gru4rec", cyclic)
    earlier = cyclic.interactions.filter(pl.col("timestamp") < 1015)
    with caplog.at_level(logging.WARNING):
        Teacher(teacher_checkpoint, leave_one_out(DataSet(earlier, cyclic.items)))
    assert "it may know what is tested" in caplog.text


def test_cosines_are_scaled_as_they_were_trained(cyclic: DataSet) -> None:
    cosine, dot = train("two-tower", cyclic), train("gru4rec", cyclic)
    assert trained_scale(cosine) == pytest.approx(10.0)
    assert trained_scale(dot) == 1.0
    assert trained_scale(dataclasses.replace(dot, metrics={})) == 1.0
