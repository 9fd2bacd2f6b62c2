"""A checkpoint answers the questions of an evaluation, through torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker import Ranker
from fuserec.models.ranker_text import TextRanker
from fuserec.models.retriever import Retriever
from fuserec.train.evaluation import rank_users
from fuserec.train.questions import Answers, Questions, padded_to
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.ranking_metrics import rank_users_by_ranker
from fuserec.train.ranking_text_metrics import rank_users_by_text_ranker


def retriever_of(checkpoint: Checkpoint) -> Retriever:
    """Build the module of a checkpoint.

    Raises:
        UsageError: if it does not rank a catalogue by itself; the message says what to do.
    """
    module = checkpoint.module()
    if not isinstance(module, Retriever):
        raise UsageError(
            f"{checkpoint.architecture} orders what a retriever finds and ranks no catalogue by itself; export it with "
            "its retriever (fuserec export RETRIEVER --ranker CHECKPOINT --repository REPOSITORY) and give REPOSITORY"
        )
    return module


def answer_by_checkpoint(
    checkpoint: Checkpoint, questions: Questions, k: int, on_progress: Callable[[int], None] = lambda done: None
) -> Answers:
    """Rank the catalogue of a checkpoint for each user; a ranker ranks by what it says of every item.

    The ranks are those of `evaluate`: exact beyond k, a tie counts against the target, and a target that the user
    already had is ranked all the same. Users whom the checkpoint does not know are known by their history alone; a
    target that it does not know is a miss. `on_progress` is told after some users how many they were.

    Raises:
        UsageError: if the checkpoint ranks no catalogue.
    """
    module = checkpoint.module()
    model = module if isinstance(module, TextRanker) else retriever_of(checkpoint)
    item_ids = checkpoint.items["item_id"].to_numpy()
    users = rows_of(checkpoint.users["user_id"].to_numpy(), questions.user_ids)
    histories, ignored = _known(rows_of(item_ids, questions.histories.values), questions.histories)
    targets = rows_of(item_ids, questions.targets)
    stand_ins = [_unseen(histories[row]) if target == 0 else target for row, target in enumerate(targets)]
    asked = (histories, np.minimum(stand_ins, item_ids.size), k)
    if isinstance(model, TextRanker):
        ranking = rank_users_by_text_ranker(model, *asked, on_progress)
    elif isinstance(model, Ranker):
        ranking = rank_users_by_ranker(model, users, *asked)
        on_progress(len(questions))
    else:
        ranking = rank_users(model, users, *asked)
        on_progress(len(questions))
    lines = ranking.top.numpy()
    top = np.where(lines < 0, NO_ID, item_ids[lines])
    ranks = np.where(targets == 0, max(k, item_ids.size) + 1, ranking.ranks.numpy())
    return Answers(padded_to(top, k), ranks, ignored)


def rows_of(sorted_ids: NDArray[np.int64], ids: NDArray[np.int64]) -> IntArray:
    """Return the row of each id, its place in `sorted_ids` plus 1; 0 where it is not among them."""
    if not sorted_ids.size:
        return np.zeros(ids.shape, dtype=np.int64)
    place = np.minimum(np.searchsorted(sorted_ids, ids), sorted_ids.size - 1)
    return np.where(sorted_ids[place] == ids, place + 1, 0)


def _known(rows: IntArray, histories: Ragged) -> tuple[Ragged, int]:
    """Leave unknown items, row 0, out of histories that have these rows; return how many there were."""
    lengths = np.bincount(histories.row_of_value[rows > 0], minlength=len(histories))
    return Ragged.from_lengths(rows[rows > 0], lengths), int((rows == 0).sum())


def _unseen(history: IntArray) -> int:
    """Return the first row that a history lacks: to be ranked where there is no target, it must change nothing."""
    return int(np.setdiff1d(np.arange(1, history.size + 2), history)[0])
