"""Questions whose answers are known, put to the exported graphs: what the quality gate goes by.

    user tower     what did this user consume next, of the whole catalogue but for what they had?
    ranker         which of these candidates did this user consume next?
    text encoder   which item has this title?

Nobody who is asked about was used for calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fuserec.kernels import ItemIndex

K: Final = 10
NOBODY: Final = -1

Feed = dict[str, NDArray[Any]]
Ids = NDArray[np.int64]
Run = Callable[[Feed], NDArray[np.float32]]


@dataclass(frozen=True)
class Questions:
    """What is asked, and how an output becomes a list of the ten best.

    Attributes:
        about: what is asked, in words.
        feeds: inputs of the network, a dict a batch; n rows altogether.
        targets: (n,) int64, what each list should hold; `NOBODY` where that is not known.
        best: called with the number of a batch and the network's output of it; returns its lists, (b, 10) int64.
    """

    about: str
    feeds: list[Feed]
    targets: Ids
    best: Callable[[int, NDArray[np.float32]], Ids]

    def ask(self, run: Run) -> Ids:
        """Return the lists that a network gives, (n, 10) int64, padded with `NOBODY`."""
        return np.concatenate([self.best(number, run(feed)) for number, feed in enumerate(self.feeds)])


@dataclass(frozen=True)
class Quality:
    """How good lists are.

    Attributes:
        ndcg: NDCG@10, one item being right; None where no right item is known.
        hr: HR@10, likewise.
        overlap: share of the ten best by float32 that are among these ten, averaged.
        loss: relative loss of NDCG@10 against the reference; negative where it is higher.
        kept: as `overlap`, of the ten best by the reference.
    """

    ndcg: float | None
    hr: float | None
    overlap: float
    loss: float | None
    kept: float


@dataclass(frozen=True)
class Reference:
    """What lists are compared with, all (n, 10) int64.

    Attributes:
        float32: lists of the same network in float32: how far a precision changes them is what `overlap` says.
        original: lists of the checkpoint that NDCG@10 is measured against. It is another network where the one that is
            exported was made smaller: that one may find other items, as long as they are as good.
    """

    float32: Ids
    original: Ids


def judge(lists: Ids, reference: Reference, targets: Ids) -> Quality:
    """Compare lists, (n, 10) int64, with those of a reference, and with what is right, (n,) int64."""
    overlap, kept = _overlap(lists, reference.float32), _overlap(lists, reference.original)
    known = targets != NOBODY
    if not known.any():
        return Quality(None, None, overlap, None, kept)
    ndcg, hr = _metrics(lists[known], targets[known])
    before, _ = _metrics(reference.original[known], targets[known])
    return Quality(ndcg, hr, overlap, (before - ndcg) / before if before > 0 else 0.0, kept)


def best_items(index: ItemIndex, seen: list[list[Ids]]) -> Callable[[int, NDArray[np.float32]], Ids]:
    """Return what finds the items of vectors; `seen` holds what each row of each batch is not to get."""
    return lambda number, vectors: index.search(vectors, K, exclude=seen[number]).ids


def best_candidates(feeds: list[Feed], order: int) -> Callable[[int, NDArray[np.float32]], Ids]:
    """Return what sorts candidates by one of their scores."""

    def best(number: int, scores: NDArray[np.float32]) -> Ids:
        columns = np.argsort(-scores[..., order], axis=1, kind="stable")[:, :K]
        rows: Ids = np.take_along_axis(feeds[number]["candidates"], columns, axis=1)
        return np.pad(rows, ((0, 0), (0, K - rows.shape[1])), constant_values=NOBODY)

    return best


def _overlap(lists: Ids, reference: Ids) -> float:
    return float(np.mean([_shared(a, b) for a, b in zip(lists, reference, strict=True)]))


def _shared(came: Ids, expected: Ids) -> float:
    expected = expected[expected != NOBODY]
    return len(np.intersect1d(came, expected)) / len(expected) if len(expected) else 1.0


def _metrics(lists: Ids, targets: Ids) -> tuple[float, float]:
    hits = lists == targets[:, None]
    gains = hits / np.log2(np.arange(2, K + 2))
    return float(gains.sum(axis=1).mean()), float(hits.any(axis=1).mean())
