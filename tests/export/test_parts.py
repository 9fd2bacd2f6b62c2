"""What the parts of a model are asked and checked on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuserec.export.judging import NOBODY
from fuserec.export.parts import RANK_BATCH, Part, ranker
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranking_model import RankingModel


@pytest.fixture(scope="module")
def checkpoint(untrained: Callable[[str, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("ranker") / "checkpoint"
    untrained("ranker-mlp", folder)
    return Checkpoint.load(folder)


@pytest.fixture(scope="module")
def part(checkpoint: Checkpoint) -> Part:
    module = checkpoint.module()
    assert isinstance(module, RankingModel)
    return ranker(module, checkpoint.users, checkpoint.items, 16, reads_texts=False)


def test_a_ranker_is_asked_about_different_candidates_and_the_right_one_is_among_them(
    checkpoint: Checkpoint, part: Part
) -> None:
    candidates = np.concatenate([feed["candidates"] for feed in part.questions.feeds])
    assert len(candidates) == len(part.questions.targets)
    histories = dict(zip(checkpoint.users["user_id"], checkpoint.users["history"], strict=True))
    ids, items = checkpoint.users["user_id"].to_numpy(), checkpoint.items["item_id"].to_numpy()
    users = np.concatenate([feed["user"] for feed in part.questions.feeds])
    for row, target, user in zip(candidates, part.questions.targets, users, strict=True):
        named = row[row > 0]
        assert len(np.unique(named)) == len(named), "twins"
        assert (named == target).sum() == 1
        assert items[target - 1] == histories[ids[user - 1]][-1], "what the user consumed last"


def test_a_graph_agrees_with_itself(part: Part) -> None:
    lists = part.questions.ask(part.run)
    assert lists.shape == (len(part.questions.targets), 10)
    assert all(len(np.unique(row)) == 10 for row in np.where(lists == NOBODY, np.arange(-10, 0), lists))


def test_calibration_and_check_stay_within_what_the_ranker_takes_at_once(part: Part) -> None:
    assert max(len(feed["user"]) for feed in part.calibration + part.check) <= RANK_BATCH
    assert {len(feed["user"]) for feed in part.check} == {1, 7, RANK_BATCH}
