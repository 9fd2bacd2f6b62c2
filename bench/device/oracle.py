"""Judges answers by float64 scores, on the device that the search itself may have run on, a whole batch at a time.

It shares nothing with the package but the meaning of a query. True scores are sums in float64; how far a float32 score
may lie from one is (D + T + 8) 2^-24 |q| |e| + D 2^-149, with T the longest bag: the rounding of a sum of D products,
of the pooling and of the normalising, and what is lost below the smallest float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fuserec.kernels import Bag, ItemIndex, Lookup, TopK

# What can be wrong with an answer; each is counted once a query.
FAULTS = (
    "form",  # shape, dtype, or a tail that is not -1 and -inf
    "unknown_id",  # an id that the index does not hold, or one that came twice
    "excluded",  # an item that the filters had removed
    "score",  # a score beyond the rounding bound of its true one
    "order",  # not score descending, then id ascending
    "worse_first",  # an item before one that is better by more than both bounds
    "left_out",  # an item that is not there, better than one that is by more than both bounds
    "tie",  # of equal rows, one with a higher id and not the one with the lower
)
_FIRST_BYTES = 1 << 28  # float64 scores of a slice of queries


@dataclass(frozen=True)
class Verdict:
    """What was found in a batch: queries with each of `FAULTS`, and with any."""

    queries: int
    wrong: int
    faults: dict[str, int]


class Oracle:
    """The true scores of one table.

    Args:
        index: What was searched; its embeddings are those that answers are held to.
        device: Where to compute.
    """

    def __init__(self, index: ItemIndex, device: str) -> None:
        self._index, self._device = index, device
        self._items = torch.from_numpy(np.array(index.embeddings)).to(device).double()
        self._lengths = self._items.norm(dim=1)
        self._ids = torch.from_numpy(np.array(index.ids)).to(device)
        # Which rows are equal, as their scores then are too: by a sum of their bits with random weights.
        bits = (self._items.float() + 0.0).view(torch.int32).long()  # -0.0 becomes 0.0
        weights = torch.randint(-(2**62), 2**62, (index.dim,), generator=torch.Generator().manual_seed(1))
        hashes = (bits * weights.to(device)).sum(1)
        self._groups = torch.unique(hashes, return_inverse=True)[1]
        self._n_groups = int(self._groups.max()) + 1

    def judge(self, answer: TopK, query: object, k: int, kept: npt.NDArray[np.bool_] | None = None) -> Verdict:
        """Hold an answer to the k best items of each query.

        Args:
            answer: What a search returned.
            query: What it was asked with.
            k: As it was asked.
            kept: (B, N) or (N,) bool: what the filters leave of the items; None for all.
        """
        queries, sizes, longest = _pooled(query)
        batch, form = len(queries), (len(queries), k)
        if answer.ids.shape != form or answer.scores.shape != form or answer.scores.dtype != np.float32:
            return Verdict(batch, batch, {fault: batch if fault == "form" else 0 for fault in FAULTS})
        step = max(1, _FIRST_BYTES // (8 * self._index.rows))
        counts, wrong = dict.fromkeys(FAULTS, 0), 0
        for start in range(0, batch, step):
            part = slice(start, start + step)
            mask = kept[part] if kept is not None and kept.ndim == 2 else kept
            found = self._faults(answer, queries[part], sizes[part], longest, mask, part)
            for fault, which in found.items():
                counts[fault] += int(which.sum())
            wrong += int(torch.stack(list(found.values())).any(0).sum())
        return Verdict(batch, wrong, counts)

    def _faults(
        self, answer: TopK, queries: Any, sizes: Any, longest: int, kept: Any, part: slice
    ) -> dict[str, torch.Tensor]:
        """Return, for each of `FAULTS`, which queries (B,) have it."""
        truth, bound = self._truth(self._to(queries), self._to(sizes), longest)
        mask = torch.ones_like(truth, dtype=torch.bool) if kept is None else self._to(kept).expand_as(truth)
        ids, scores = self._to(answer.ids[part]), self._to(answer.scores[part]).double()
        k = ids.shape[1]
        size = mask.sum(1).clamp(max=k)
        real = torch.arange(k, device=self._device)[None, :] < size[:, None]
        rows = torch.searchsorted(self._ids, ids).clamp(max=len(self._ids) - 1)
        known = self._ids[rows] == ids
        in_order = (scores[:, :-1] > scores[:, 1:]) | ((scores[:, :-1] == scores[:, 1:]) & (ids[:, :-1] < ids[:, 1:]))
        times = torch.zeros_like(mask, dtype=torch.int32).scatter_add_(1, rows, (real & known).int())
        returned = times > 0
        high, low = truth + bound, truth - bound
        at_high = high.gather(1, rows).masked_fill(~real, torch.inf)
        at_low = low.gather(1, rows).masked_fill(~real, -torch.inf)
        best_after = at_low.flip(1).cummax(1).values.flip(1)
        off = (scores - truth.gather(1, rows)).abs() > bound.gather(1, rows)
        left = low.masked_fill(~mask | returned, -torch.inf).amax(1)
        return {
            "form": (~real & ((ids != -1) | ~torch.isneginf(scores))).any(1) | torch.isnan(scores).any(1),
            "unknown_id": (real & ~known).any(1) | (times > 1).any(1),
            "excluded": (known & ~mask.gather(1, rows)).any(1),
            "score": (real & known & off).any(1),
            "order": (real[:, 1:] & ~in_order).any(1),
            "worse_first": (real[:, 1:] & (at_high[:, :-1] < best_after[:, 1:])).any(1),
            "left_out": at_high.amin(1) < left,
            "tie": self._wrong_tie(returned, mask & ~returned),
        }

    def _wrong_tie(self, returned: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """Return which queries (B,) leave out a row before one that they return and that is equal to it."""
        if self._n_groups == self._index.rows:
            return torch.zeros(len(returned), dtype=torch.bool, device=self._device)
        rows = torch.arange(self._index.rows, device=self._device, dtype=torch.int32).expand_as(returned)
        groups = self._groups.expand_as(returned)
        form = (len(returned), self._n_groups)
        last = torch.full(form, -1, dtype=torch.int32, device=self._device)
        last.scatter_reduce_(1, groups, torch.where(returned, rows, -1), "amax")
        first = torch.full(form, self._index.rows, dtype=torch.int32, device=self._device)
        first.scatter_reduce_(1, groups, torch.where(left, rows, self._index.rows), "amin")
        return (first < last).any(1)

    def _truth(self, queries: torch.Tensor, sizes: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return true scores and bounds, both (B, N) float64."""
        if self._index.metric == "cosine":
            norms = queries.norm(dim=1, keepdim=True)
            queries, sizes = queries / norms, sizes / norms
        gamma = (self._index.dim + longest + 8) * 2.0**-24
        bound = gamma * sizes.norm(dim=1)[:, None] * self._lengths[None, :] + self._index.dim * 2.0**-149
        return queries @ self._items.T, bound

    def _to(self, array: Any) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _pooled(query: object) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
    """Return queries (B, D), the same with the absolute value of every term, and the longest bag."""
    if isinstance(query, Lookup):
        query = query.table[query.ids]
    if not isinstance(query, Bag):
        dense = np.asarray(query, np.float64)
        return dense, np.abs(dense), 1
    lengths = np.diff(query.offsets)
    terms = query.table.astype(np.float64)[query.ids]
    if query.weights is not None:
        terms *= query.weights[:, None].astype(np.float64)
    share = np.ones(len(lengths)) if query.weights is not None else np.maximum(lengths, 1)
    bag = np.repeat(np.arange(len(lengths)), lengths)
    pooled, sizes = (np.zeros((len(lengths), terms.shape[1])) for _ in range(2))
    np.add.at(pooled, bag, terms)
    np.add.at(sizes, bag, np.abs(terms))
    return pooled / share[:, None], sizes / share[:, None], int(lengths.max(initial=1))
