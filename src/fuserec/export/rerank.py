"""How much `recommend` is to listen to the ranker: measured on held-out items, through the exported graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fuserec.contract import MAX_BATCH
from fuserec.export.blend import choose_weight, ndcg, target_ranks
from fuserec.export.histories import padded_rows
from fuserec.export.parts import RANK_BATCH, Part
from fuserec.kernels import ItemIndex
from fuserec.manifest import RerankRecord
from fuserec.serve.blending import blend
from fuserec.serve.engines import OnnxRuntimeEngine

MIN_INTERACTIONS: Final = 3


@dataclass(frozen=True)
class _Scored:
    """What retriever and ranker say of the candidates of U users: (U, C) float32 twice; -inf where there is none."""

    retrieval: NDArray[np.float32]
    rank: NDArray[np.float32]
    target: NDArray[np.int64]


def _ndcg(scored: _Scored, weight: float) -> float:
    blended = blend(scored.retrieval, scored.rank, weight)
    return float(ndcg(target_ranks(blended, scored.target)).mean())


class Reranking:
    """Retriever, index and ranker over the users of a checkpoint.

    Args:
        user_tower: the part, and its graph.
        ranker: likewise.
        index: the items.
        users: user_id, history; line r is user row r + 1.
        items: line r is item row r + 1.
        candidates: how many items are retrieved for the ranker.
    """

    def __init__(
        self,
        user_tower: tuple[Part, Path],
        ranker: tuple[Part, Path],
        index: ItemIndex,
        users: pl.DataFrame,
        items: pl.DataFrame,
        candidates: int,
    ) -> None:
        self._tower, self._tower_engine = user_tower[0], OnnxRuntimeEngine(user_tower[1])
        self._ranker, self._rank_engine = ranker[0], OnnxRuntimeEngine(ranker[1])
        self._index = index
        self._items = items["item_id"].to_numpy()
        self._candidates = min(candidates, len(self._items))
        rows = np.flatnonzero((users["history"].list.len() >= MIN_INTERACTIONS).to_numpy())
        rows = np.random.default_rng(0).permutation(rows)[: ranker[0].weighed_users]
        self._rows: NDArray[np.int64] = np.sort(rows)
        self._histories: list[list[int]] = users["history"][self._rows].to_list()

    def choose(self) -> RerankRecord:
        """Choose the weight by the second last item of every user, and measure it by the last."""
        if not len(self._rows):
            return RerankRecord(self._candidates, 1.0, 0, {})
        validation, test = self._score(2), self._score(1)
        chosen = choose_weight(validation.retrieval, validation.rank, validation.target)
        numbers = {
            f"{name}_{when}": _ndcg(scored, weight)
            for name, scored in (("validation", validation), ("test", test))
            for when, weight in (("before", 0.0), ("after", chosen.weight))
        }
        return RerankRecord(self._candidates, chosen.weight, len(self._rows), numbers)

    def _score(self, held_out: int) -> _Scored:
        """Retrieve and rank for everybody as they were before their `held_out`-th last item."""
        known = [history[:-held_out] for history in self._histories]
        wanted = np.array([history[-held_out] for history in self._histories], dtype=np.int64)
        parts = [self._chunk(slice(at, at + MAX_BATCH), known, wanted) for at in range(0, len(known), MAX_BATCH)]
        return _Scored(
            np.concatenate([part.retrieval for part in parts]),
            np.concatenate([part.rank for part in parts]),
            np.concatenate([part.target for part in parts]),
        )

    def _chunk(self, here: slice, known: list[list[int]], wanted: NDArray[np.int64]) -> _Scored:
        user = self._rows[here] + 1
        feed = {"user": user, "history": padded_rows(known[here], self._items, self._tower.max_history)}
        vectors = self._tower_engine.run(feed)[self._tower.output]
        seen = [np.array(history, dtype=np.int64) for history in known[here]]
        found = self._index.search(vectors, self._candidates, exclude=seen)
        is_one = found.ids >= 0
        rows = np.where(is_one, np.searchsorted(self._items, found.ids) + 1, 0)
        history = padded_rows(known[here], self._items, self._ranker.max_history)
        scores = [
            self._rank_engine.run(
                {
                    name: values[at : at + RANK_BATCH]
                    for name, values in {"user": user, "history": history, "candidates": rows}.items()
                }
            )[self._ranker.output][..., self._ranker.order]
            for at in range(0, len(user), RANK_BATCH)
        ]
        hit = found.ids == wanted[here, None]
        target = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)
        return _Scored(found.scores, np.concatenate(scores), target)
