"""The three ways to the answers of an evaluation: a checkpoint, a repository in this process, a running server.

They take the same questions. Torch knows every rank; the other two answer as a caller would be answered, with lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fuserec.contract import MAX_BATCH, MAX_HISTORY
from fuserec.errors import BundleError, UsageError
from fuserec.id_map import IdMaps
from fuserec.train.questions import Answers, Questions

CALLERS: Final = 8
_URL: Final = re.compile(r"(\w+://.+|[^/\s]+:\d+)")

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Evaluator:
    """Something that answers questions.

    Attributes:
        name: what the user called it.
        route: "torch", "bundle" or "server".
        answer: called with questions, the length of the lists, and a function that is told after some users how many
            they were.
        ids: whose numbers it knows, as far as it says: a server does if it is one of this machine.
    """

    name: str
    route: str
    answer: Callable[[Questions, int, OnProgress], Answers]
    ids: IdMaps = IdMaps()


def open_evaluator(name: str, timeout_ms: float) -> Evaluator:
    """Open a checkpoint folder, a repository folder, or the address of a server.

    Raises:
        UsageError: It is none of them.
        CheckpointError: The checkpoint is damaged.
        BundleError: The repository is damaged.
    """
    folder = Path(name)
    if (folder / "config.json").is_file():
        return _of_checkpoint(name)
    if folder.is_dir():
        return _of_repository(name)
    if _URL.fullmatch(name):
        return _of_server(name, timeout_ms)
    raise UsageError(
        f"{name} is neither a folder nor an address; "
        "expected a checkpoint, a repository, host:port, grpc://host:port or http://host:port"
    )


def _of_checkpoint(name: str) -> Evaluator:
    from fuserec.models.checkpoint import Checkpoint
    from fuserec.train.answering import answer_by_checkpoint

    checkpoint = Checkpoint.load(Path(name))

    def answer(questions: Questions, k: int, on_progress: OnProgress) -> Answers:
        return answer_by_checkpoint(checkpoint, questions, k, on_progress)

    return Evaluator(name, "torch", answer, checkpoint.ids)


def _of_repository(name: str) -> Evaluator:
    from fuserec.serve.pipeline import Pipeline
    from fuserec.serve.query import Query
    from fuserec.serve.users import NO_IDS
    from fuserec.traffic import served_folder

    bundle = served_folder(Path(name))
    pipeline = Pipeline.open(bundle)

    def answer(questions: Questions, k: int, on_progress: OnProgress) -> Answers:
        queries = [
            Query(int(user_id), questions.histories[row], NO_IDS, k, history_only=True)
            for row, user_id in enumerate(questions.user_ids)
        ]
        lists, ignored = [], 0
        for first in range(0, len(queries), MAX_BATCH):
            batch = pipeline.recommend(queries[first : first + MAX_BATCH])
            lists += [answer.item_ids for answer in batch]
            ignored += sum(answer.ignored for answer in batch)
            on_progress(len(batch))
        return Answers.of_lists(np.stack(lists), questions.targets, ignored)

    return Evaluator(name, "bundle", answer, IdMaps.read(bundle, BundleError))


def _of_server(name: str, timeout_ms: float) -> Evaluator:
    from fuserec.client import Recommendations, Recommender

    def answer(questions: Questions, k: int, on_progress: OnProgress) -> Answers:
        def ask(row: int) -> Recommendations:
            history = questions.histories[row]
            # What is too old for one call is still not to come back.
            answer = recommender.recommend(
                user_id=int(questions.user_ids[row]),
                history=history[-MAX_HISTORY:].tolist(),
                exclude=history[:-MAX_HISTORY].tolist(),
                history_only=True,
                k=k,
            )
            on_progress(1)
            return answer

        with Recommender(name, timeout_ms=timeout_ms) as recommender, ThreadPoolExecutor(CALLERS) as callers:
            served = list(callers.map(ask, range(len(questions))))
        lists = np.stack([answer.item_ids for answer in served])
        return Answers.of_lists(lists, questions.targets, sum(answer.ignored for answer in served))

    return Evaluator(name, "server", answer, _ids_of_server(name))


def _ids_of_server(name: str) -> IdMaps:
    """Return the maps of a server of this machine that `fuserec serve` noted; of others they are not known."""
    from fuserec.serve.state import repository_of
    from fuserec.traffic import served_folder

    repository = repository_of(name)
    return IdMaps() if repository is None else IdMaps.read(served_folder(repository), BundleError)
