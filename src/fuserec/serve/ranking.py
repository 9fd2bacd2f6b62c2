"""Candidates in the order that the ranker gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuserec.contract import MAX_CANDIDATES, RANKER
from fuserec.manifest import Manifest
from fuserec.serve.device import CPU, Device
from fuserec.serve.engine_choice import open_engine
from fuserec.serve.engines import Engine
from fuserec.serve.users import Ids, Known, Users

# Pairs of a user and a candidate that one run of the engine sees, at most; the profile of a GPU engine has room for
# 8 users with 1000 candidates each.
MAX_PAIRS = 8_000
MAX_USERS = 8
THREADS = 2
# Candidates come in multiples of so many: what 512 bits hold in float32.
WHOLE = 16
CLICK, RATING = 0, 1


@dataclass(frozen=True)
class RankQuery:
    """Candidates to be ranked for one user.

    Attributes:
        user_id: The caller's own id, `NO_ID` for somebody known only by a history.
        history: (L,) item ids, oldest first; where it names no known item, what is stored of the user takes its place.
        candidates: (C,) item ids.
        history_only: What is stored of the user plays no part.
    """

    user_id: int
    history: Ids
    candidates: Ids
    history_only: bool = False


@dataclass(frozen=True)
class Ranked:
    """Candidates of one user, best first.

    Attributes:
        item_ids: (C,) int64, without those that the catalogue does not hold.
        scores: (C,) float32: probability of a click, or the rating where the ranker knows no clicks.
        ratings: (C,) float32: predicted ratings; NaN where the ranker knows none.
        ignored: Ids in history and candidates that the catalogue does not hold.
    """

    item_ids: Ids
    scores: NDArray[np.float32]
    ratings: NDArray[np.float32]
    ignored: int


class RankStage:
    """The ranker of a bundle.

    Args:
        engine: `user`, `history`, `candidates` -> `scores` (B, C, 2).
        heads: which of `click` and `rating` it was trained to say.
        max_history: items of a history that it reads.
    """

    def __init__(self, engine: Engine, heads: Sequence[str], max_history: int) -> None:
        self._engine = engine
        self._heads = tuple(heads)
        self._order = CLICK if "click" in heads else RATING
        self._max_history = max_history

    @classmethod
    def open(cls, bundle: Path, manifest: Manifest, device: Device = CPU) -> RankStage | None:
        """Open the stage, if the bundle has one."""
        if RANKER not in manifest.parts:
            return None
        engine = open_engine(bundle, manifest, RANKER, device=device, threads=THREADS)
        return cls(engine, manifest.heads, manifest.max_history[RANKER])

    def run(self, users: Known, candidates: Ids) -> NDArray[np.float32]:
        """Score (B, C) item rows, 0 being none, for B users: (B, C, 2) float32."""
        step = max(1, min(MAX_USERS, MAX_PAIRS // max(1, candidates.shape[1])))
        # What is left over beyond whole vectors of the processor is computed by other code and differs in the last
        # bit, so nothing may be left over. The profile of a GPU engine ends at MAX_CANDIDATES, which is no multiple.
        n = candidates.shape[1]
        width = min(n + -n % WHOLE, max(n, MAX_CANDIDATES))
        candidates = np.pad(candidates, ((0, 0), (0, width - n)))
        scores = np.empty((*candidates.shape, 2), dtype=np.float32)
        for here, feed in users.padded(self._max_history, step):
            scores[here] = self._engine.run(feed | {"candidates": candidates[here]})["scores"]
        return scores[:, :n]

    def order(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return of (..., 2) scores the one that orders."""
        return scores[..., self._order]

    def rank(self, queries: Sequence[RankQuery], users: Users) -> list[Ranked]:
        """Answer B queries."""
        known = users.look_up(queries, users.numbers(queries))
        candidates = [users.known(query.candidates) for query in queries]
        width = max(1, *(len(ids) for ids, _ in candidates))
        rows = np.zeros((len(queries), width), dtype=np.int64)
        for row, (ids, _) in zip(rows, candidates, strict=True):
            row[: len(ids)] = users.rows(ids)
        scores = self.run(known, rows)
        return [
            self._answer(ids, scores[place, : len(ids)], missing + int(known.ignored[place]))
            for place, (ids, missing) in enumerate(candidates)
        ]

    def _answer(self, ids: Ids, scores: NDArray[np.float32], ignored: int) -> Ranked:
        best = np.argsort(-self.order(scores), kind="stable")
        scores = scores[best]
        ratings = scores[:, RATING] if "rating" in self._heads else np.full(len(ids), np.nan, dtype=np.float32)
        shown = 1.0 / (1.0 + np.exp(-scores[:, CLICK])) if self._order == CLICK else scores[:, RATING]
        return Ranked(ids[best], shown.astype(np.float32), ratings, ignored)
