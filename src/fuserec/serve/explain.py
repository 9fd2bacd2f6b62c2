"""Why an item was recommended: what its score loses when one item of the history is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.users import NO_IDS, Ids


@dataclass(frozen=True)
class Explanation:
    """How the items of a history moved the score of one item.

    Attributes:
        item_ids: (L,) int64, the history that the user tower read, oldest first.
        contributions: (L,) float32, the score minus the score without the item (leave-one-out).
        score: of the item for this user, by the retriever.
        baseline: its score for the same user without a history.
    """

    item_ids: Ids
    contributions: NDArray[np.float32]
    score: float
    baseline: float


def explain(pipeline: Pipeline, query: Query, item_id: int) -> Explanation:
    """Explain one item.

    Args:
        pipeline: the bundle.
        query: who asks; `exclude`, `k` and `text` are not read.
        item_id: the item.

    Raises:
        ValueError: The catalogue does not hold the item.
    """
    history = pipeline.history(query)
    without = [np.delete(history, place) for place in range(len(history))]
    variants: Sequence[Ids] = [history, *without, NO_IDS]
    asked = [dataclasses.replace(query, history=variant, history_only=True, text="") for variant in variants]
    vectors = pipeline.encode(asked).vectors
    scores = pipeline.scores(vectors, item_id)
    return Explanation(history, scores[0] - scores[1:-1], float(scores[0]), float(scores[-1]))
