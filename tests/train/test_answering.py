"""A checkpoint answers as it was scored when it was trained, and copes with what it does not know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fuserec.contract import NO_ID
from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker_text import TextRankTower
from fuserec.train.answering import answer_by_checkpoint, rows_of
from fuserec.train.data import DataSet
from fuserec.train.exposure import Popularity
from fuserec.train.questions import SPLITS, Questions, questions_of
from fuserec.train.ragged import Ragged
from fuserec.train.recipes import RECIPES
from fuserec.train.report import report
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out


@pytest.fixture(scope="module")
def checkpoint(cyclic: DataSet) -> Checkpoint:
    recipe = RECIPES["two-tower"].options({"epochs": 2, "dim": 16, "max_history": 8})
    return RECIPES["two-tower"].train(cyclic, recipe, Run(progress=False))


@pytest.mark.parametrize("name", SPLITS)
def test_the_numbers_are_those_of_metrics_json(name: str, cyclic: DataSet, checkpoint: Checkpoint) -> None:
    split = leave_one_out(cyclic)
    questions = questions_of(split, name)
    answers = answer_by_checkpoint(checkpoint, questions, 25)
    metrics = report(questions, answers, Popularity.of(split), [10], None)["metrics"]
    for metric, value in checkpoint.metrics[name].items():
        assert metrics[metric]["value"] == pytest.approx(value, rel=1e-13), metric
    assert 0 < metrics["ndcg@10"]["value"] < 1


def test_lists_are_of_ids_and_hold_nothing_seen(cyclic: DataSet, checkpoint: Checkpoint) -> None:
    questions = questions_of(leave_one_out(cyclic), "test")
    answers = answer_by_checkpoint(checkpoint, questions, 100)
    assert answers.top.shape == (len(questions), 100)
    catalogue = set(cyclic.items["item_id"].to_list())
    for row, line in enumerate(answers.top):
        left = line[line != NO_ID].tolist()
        assert set(left) == catalogue - set(questions.histories[row].tolist())
        assert left[answers.ranks[row] - 1] == questions.targets[row]


def test_unknown_users_and_items_are_allowed(checkpoint: Checkpoint) -> None:
    """Ids of the checkpoint: users 0, 5, ..., items 0, 3, ...; user 1 and item 1 are nobody and nothing."""
    histories = Ragged.from_lengths(np.array([3, 1, 6, 3, 6, 3, 6]), np.array([3, 2, 2]))
    asked = Questions(np.array([1, 1, 0]), histories, np.array([9, 9, 1]))
    answers = answer_by_checkpoint(checkpoint, asked, 5)
    assert answers.ignored == 1
    np.testing.assert_array_equal(answers.top[0], answers.top[1], err_msg="an unknown item changed the answer")
    assert answers.ranks[0] == answers.ranks[1] <= 60
    assert answers.ranks[2] > 60, "an item that is not in the catalogue was found"
    assert not set(answers.top[2].tolist()) & {3, 6}


def test_rows_of_ids() -> None:
    assert rows_of(np.array([2, 4, 9]), np.array([9, 3, 2, 10, -1])).tolist() == [3, 0, 1, 0, 0]
    assert rows_of(np.array([], dtype=np.int64), np.array([1])).tolist() == [0]


def test_what_ranks_no_catalogue_is_told_what_to_do(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(checkpoint)
    monkeypatch.setattr(Checkpoint, "module", lambda self: torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match="export it with its retriever"):
        answer_by_checkpoint(other, Questions(np.array([0]), Ragged(np.array([3]), np.array([0, 1])), np.array([6])), 5)


def test_splits_by_another_name(cyclic: DataSet) -> None:
    with pytest.raises(UsageError, match="split is 'train'; expected validation or test"):
        questions_of(leave_one_out(cyclic), "train")


def test_a_ranker_is_judged_by_what_it_says_of_every_item(cyclic: DataSet) -> None:
    recipe = RECIPES["ranker-mlp"].options({"epochs": 2, "dim": 16, "max_history": 8, "hidden": 16, "batch_size": 8})
    trained = RECIPES["ranker-mlp"].train(cyclic, recipe, Run(progress=False))
    split = leave_one_out(cyclic)
    questions = questions_of(split, "test")
    metrics = report(questions, answer_by_checkpoint(trained, questions, 25), Popularity.of(split), [10], None)
    for metric in ("hr@10", "ndcg@10", "mrr@10", "coverage@10"):
        assert metrics["metrics"][metric]["value"] == pytest.approx(trained.metrics["test"][metric], rel=1e-13), metric


def test_a_cross_encoder_is_judged_by_what_it_says_of_every_item(
    untrained: Callable[[str, Path], None], tmp_path: Path
) -> None:
    untrained("ranker-text", tmp_path)
    checkpoint = Checkpoint.load(tmp_path)
    item_ids = checkpoint.items["item_id"].to_numpy()
    histories = Ragged.from_lengths(item_ids[[5, 9, 40, 7]], np.array([3, 1]))
    asked = Questions(np.array([5, 8]), histories, item_ids[[17, 200]])
    counted: list[int] = []
    answers = answer_by_checkpoint(checkpoint, asked, 400, counted.append)
    assert counted == [1, 1]

    tower = checkpoint.module().rank_tower
    assert isinstance(tower, TextRankTower)
    rows = torch.arange(1, item_ids.size + 1)
    for row, past in enumerate([[6, 10, 41], [8]]):
        with torch.no_grad():
            scores = tower(torch.tensor([0]), torch.tensor([past]), rows[None])[0, :, 0]
        found = answers.top[row][answers.top[row] != NO_ID]
        assert set(found.tolist()) == set(item_ids.tolist()) - set(asked.histories[row].tolist())
        places = np.searchsorted(item_ids, found)
        assert (scores[places].diff() <= 1e-5).all(), "not in the order of what the ranker says"
        assert found[answers.ranks[row] - 1] == asked.targets[row]


def test_hours_of_reading_are_announced(
    untrained: Callable[[str, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("fuserec.train.ranking_text_metrics.MANY_PAIRS", 299)
    untrained("ranker-text", tmp_path)
    checkpoint = Checkpoint.load(tmp_path)
    asked = Questions(np.array([5]), Ragged.from_lengths(np.array([1000]), np.array([1])), np.array([1007]))
    answer_by_checkpoint(checkpoint, asked, 5)
    assert (
        "1 users with 300 items are 300 texts for ranker-text" in caplog.text
        and "--users evaluates fewer" in caplog.text
    )
