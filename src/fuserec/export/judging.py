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
        popular: (n, 10) int64, the lists of a recommender that knows popularity only; None where there is no such.
    """

    about: str
    feeds: list[Feed]
    targets: Ids
    best: Callable[[int, NDArray[np.float32]], Ids]
    popular: Ids | None = None

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
        ndcg_error: half the width of the 95 % interval of `ndcg`, by the normal distribution of a mean over questions.
        loss_error: likewise of `loss`, from the differences question by question.
    """

    ndcg: float | None
    hr: float | None
    overlap: float
    loss: float | None
    kept: float
    ndcg_error: float | None = None
    loss_error: float | None = None


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
    gains, before = _gains(lists[known], targets[known]), _gains(reference.original[known], targets[known])
    mean, mean_before = float(gains.mean()), float(before.mean())
    loss = (mean_before - mean) / mean_before if mean_before > 0 else 0.0
    loss_error = _error(before - gains) / mean_before if mean_before > 0 else 0.0
    return Quality(mean, float((gains > 0).mean()), overlap, loss, kept, _error(gains), loss_error)


def popularity_ndcg(questions: Questions) -> float | None:
    """Return the NDCG@10 of the popular lists; None where there are none, or no right item is known."""
    known = questions.targets != NOBODY
    if questions.popular is None or not known.any():
        return None
    return float(_gains(questions.popular[known], questions.targets[known]).mean())


def popular_items(item_ids: Ids, counts: Ids, seen: list[Ids]) -> Ids:
    """Return the ten most consumed items for each question, without what it excludes: (n, 10) int64.

    Args:
        item_ids: (N,).
        counts: (N,) interactions of each.
        seen: n arrays of item ids.
    """
    order = item_ids[np.argsort(-counts, kind="stable")]
    lists = np.full((len(seen), K), NOBODY, np.int64)
    for line, had in zip(lists, seen, strict=True):
        # So many of the best are enough, whatever of them is excluded.
        best = order[: K + len(had)]
        left = best[~np.isin(best, had)][:K]
        line[: len(left)] = left
    return lists


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


def _gains(lists: Ids, targets: Ids) -> NDArray[np.float64]:
    """Return the NDCG@10 of each list, (n,): one item is right."""
    gains: NDArray[np.float64] = ((lists == targets[:, None]) / np.log2(np.arange(2, K + 2))).sum(axis=1)
    return gains


def _error(values: NDArray[np.float64]) -> float:
    """Return half the width of the 95 % interval of the mean of some values."""
    return float(1.96 * values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
