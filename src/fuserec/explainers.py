"""The three ways to an explanation: a checkpoint, a repository in this process, a running server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.errors import UsageError


class Explained(Protocol):
    """What all ways answer; `fuserec.train.explain.Explanation` says more of it."""

    @property
    def score(self) -> float:
        """Similarity of user and item."""

    @property
    def baseline(self) -> float:
        """The score without the history."""

    @property
    def item_ids(self) -> NDArray[np.int64]:
        """(L,) the history that was read, oldest first."""

    @property
    def contributions(self) -> NDArray[np.float32]:
        """(L,) what each item of it adds to the score."""


def explain_by_checkpoint(
    folder: Path, user: int | None, history: Sequence[int] | None, item: int, method: str
) -> Explained:
    """Explain through torch; the history is what the checkpoint holds of the user where none is given."""
    from fuserec.models.checkpoint import Checkpoint
    from fuserec.train.explain import explain

    given = None if history is None else np.array(history, dtype=np.int64)
    return explain(Checkpoint.load(folder), user, given, item, method)


def explain_by_repository(folder: Path, user: int | None, history: Sequence[int] | None, item: int) -> Explained:
    """Explain through the bundle that a repository serves by leave-one-out."""
    from fuserec.serve.explain import explain
    from fuserec.serve.pipeline import Pipeline
    from fuserec.serve.query import Query
    from fuserec.serve.users import NO_IDS
    from fuserec.traffic import served_folder

    query = Query(NO_ID if user is None else user, np.array(history or (), dtype=np.int64), NO_IDS, 1)
    pipeline = Pipeline.open(served_folder(folder))
    try:
        return explain(pipeline, query, item)
    except ValueError as error:  # the item
        raise UsageError(str(error)) from None


def explain_by_server(
    url: str, user: int | None, history: Sequence[int] | None, item: int, timeout_ms: float
) -> Explained:
    """Explain through a running server by leave-one-out."""
    from fuserec.client import Recommender

    with Recommender(url, timeout_ms=timeout_ms) as recommender:
        return recommender.explain(user_id=user, history=history or (), item_id=item)
