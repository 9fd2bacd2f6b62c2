"""The ranker's part in `recommend`: it reorders the first of what the search found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.serve.blending import blend
from fuserec.serve.ranking import RankStage
from fuserec.serve.users import Ids, Known

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Reranker:
    """The ranker as `recommend` uses it: it sees the best `candidates` and has a say of `weight`, 0 to 1."""

    stage: RankStage
    candidates: int
    weight: float

    def reorder(
        self, users: Known, ids: Ids, scores: Floats, rows: Ids, item_rows: Callable[[Ids], Ids]
    ) -> tuple[Ids, Floats]:
        """Reorder the first candidates of some rows; what lies beyond keeps its order, below.

        Args:
            users: Those of `rows`.
            ids: (B, k) int64 item ids, best first.
            scores: (B, k) float32 of theirs.
            rows: (b,) int64: what to reorder.
            item_rows: Turns item ids into the rows that the ranker knows.

        Returns:
            Item ids and scores, (B, k) each; those given where there is nothing to do.
        """
        n = min(self.candidates, ids.shape[1])
        if not len(rows) or n == 0 or self.weight == 0.0:
            return ids, scores
        ids, scores = ids.copy(), scores.copy()
        opinions = self.stage.order(self.stage.run(users, item_rows(ids[rows, :n])))
        blended = blend(scores[rows, :n], opinions, self.weight)
        order = np.argsort(-blended, axis=1, kind="stable")
        # The tail goes on from the last of the reordered, by the retriever's own differences.
        lowest = np.take_along_axis(blended, order[:, -1:], axis=1)
        with np.errstate(invalid="ignore"):  # where nothing is left, -inf less -inf
            tail = lowest + (scores[rows, n:] - scores[rows, n - 1 : n])
        ids[rows, :n] = np.take_along_axis(ids[rows, :n], order, axis=1)
        scores[rows, :n] = np.take_along_axis(blended, order, axis=1)
        scores[rows, n:] = np.where(ids[rows, n:] == NO_ID, -np.inf, tail)
        return ids, scores
