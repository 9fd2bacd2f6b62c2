"""What an answer is held to: the true scores in float64, and how far float32 sums may be from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fuserec.kernels import Bag, ItemIndex, Lookup, TopK


@dataclass(frozen=True)
class Truth:
    """True scores (B, N) and the bound (B, N) on the error of a float32 score; both float64, in the order of `ids`."""

    ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    bounds: npt.NDArray[np.float64]


def truth(index: ItemIndex, query: object) -> Truth:
    """Score `query` in float64, by means that share nothing with the package."""
    queries, sizes, longest = _pooled(query)
    items = index.embeddings.astype(np.float64)
    if index.metric == "cosine":
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        queries, sizes = queries / norms, sizes / norms
    # A sum of n products in float32 errs by at most n * 2^-24 * |q| * |e|; pooling and normalising add a few terms.
    gamma = (index.dim + longest + 8) * 2.0**-24
    lengths = np.linalg.norm(sizes, axis=1)[:, None] * np.linalg.norm(items, axis=1)
    return Truth(index.ids, np.einsum("bd,nd->bn", queries, items), gamma * lengths)


def _pooled(query: object) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], int]:
    """Return queries (B, D), the same with the absolute value of every term, and the longest bag."""
    if isinstance(query, Lookup):
        query = query.table[query.ids]
    if not isinstance(query, Bag):
        dense = np.asarray(query, np.float64)
        return dense, np.abs(dense), 1
    bags = list(zip(query.offsets[:-1], query.offsets[1:], strict=True))
    terms = query.table.astype(np.float64)[query.ids]
    if query.weights is not None:
        terms = terms * query.weights[:, None].astype(np.float64)
    share = [1 if query.weights is not None else max(stop - start, 1) for start, stop in bags]
    pooled = [terms[start:stop].sum(axis=0) / n for (start, stop), n in zip(bags, share, strict=True)]
    sizes = [np.abs(terms[start:stop]).sum(axis=0) / n for (start, stop), n in zip(bags, share, strict=True)]
    return np.stack(pooled), np.stack(sizes), max(stop - start for start, stop in bags)


def assert_same_topk(got: TopK, want: Truth, k: int, kept: npt.NDArray[np.bool_] | None = None) -> None:
    """Assert that `got` is the top k of `want` among `kept` (B, N), up to pairs closer than their bounds."""
    kept = np.ones(want.scores.shape, np.bool_) if kept is None else np.broadcast_to(kept, want.scores.shape)
    assert (got.ids.shape, got.ids.dtype) == ((len(want.scores), k), np.int64)
    assert (got.scores.shape, got.scores.dtype) == ((len(want.scores), k), np.float32)
    assert got.certified.tolist() == [True] * len(want.scores)
    for b in range(len(want.scores)):
        size = min(k, int(kept[b].sum()))
        ids, scores = got.ids[b, :size], got.scores[b, :size]
        assert (got.ids[b, size:] == -1).all() and np.isneginf(got.scores[b, size:]).all()
        rows = np.searchsorted(want.ids, ids)
        assert want.ids[rows].tolist() == ids.tolist(), "an id that the index does not hold"
        assert len(set(ids.tolist())) == size, "an id came twice"
        assert kept[b, rows].all(), "an item that the filters had removed"
        assert (np.abs(scores - want.scores[b, rows]) <= want.bounds[b, rows]).all()
        in_order = (scores[:-1] > scores[1:]) | ((scores[:-1] == scores[1:]) & (ids[:-1] < ids[1:]))
        assert in_order.all(), "not in the order score descending, id ascending"
        high, low = want.scores[b] + want.bounds[b], want.scores[b] - want.bounds[b]
        best_below = np.maximum.accumulate(low[rows][::-1])[::-1]
        assert (high[rows][:-1] >= best_below[1:]).all(), "a worse item before a better one"
        left = np.setdiff1d(np.flatnonzero(kept[b]), rows)
        if size and left.size:
            assert high[rows].min() >= low[left].max(), "a better item was left out"


def assert_identical_topk(got: TopK, want: Truth, k: int, kept: npt.NDArray[np.bool_] | None = None) -> None:
    """Assert ids and scores to the bit; for data, such as small integers, on which float32 makes no error."""
    kept = np.ones(want.scores.shape, np.bool_) if kept is None else np.broadcast_to(kept, want.scores.shape)
    for b in range(len(want.scores)):
        rows = np.flatnonzero(kept[b])
        rows = rows[np.lexsort((want.ids[rows], -want.scores[b, rows]))][:k]
        tail = k - len(rows)
        assert got.ids[b].tolist() == want.ids[rows].tolist() + [-1] * tail
        assert got.scores[b].tolist() == want.scores[b, rows].tolist() + [-np.inf] * tail
