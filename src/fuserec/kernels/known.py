"""Queries that are known before they are asked: the users of a service, say, with what each has seen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray, counted, end_to_end, frozen
from fuserec.kernels.filters import ExcludedRows
from fuserec.kernels.index import ItemIndex, TopK
from fuserec.kernels.search import op

if TYPE_CHECKING:
    from fuserec.kernels.search._known import KnownSearch


class KnownQueries:
    """Vectors and excluded rows by number, and the index in which they are searched.

    On a CPU, look-up, scores, filters and selection are one compiled call, as far as one thread does the search.
    Others, and the few whose first pass proves nothing, go the way of `ItemIndex.search`. The answers are the same.

    Args:
        index: What is searched.
        vectors: (V, D) float32, C-contiguous, not copied: its owner may write to it between two searches.
        excluded: U lists of rows of the index.

    Raises:
        ValueError: They do not fit the index.
    """

    def __init__(self, index: ItemIndex, vectors: FloatArray, excluded: ExcludedRows) -> None:
        is_contiguous = isinstance(vectors, np.ndarray) and vectors.flags.c_contiguous
        if not is_contiguous or vectors.dtype != np.float32 or vectors.shape[1:] != (index.dim,):
            raise ValueError(
                f"vectors: got shape {np.shape(vectors)}, expected C-contiguous float32 of {index.dim} columns as in "
                "the item index"
            )
        if excluded.n_rows != index.rows:
            raise ValueError(f"excluded: got lists over {excluded.n_rows} items, expected {index.rows}")
        self._index, self._vectors, self._excluded = index, vectors, excluded
        self._compiled: KnownSearch | None = None
        if op.resolve("auto") == "cpu" and index.codes is not None:
            from fuserec.kernels.search._known import KnownSearch

            normalize = index.metric == "cosine"
            self._compiled = KnownSearch(
                index.embeddings,
                index.codes,
                index.ids,
                vectors,
                excluded,
                normalize=normalize,
                magnitudes=op.sound_magnitudes(normalize=normalize, max_abs=index.max_abs),
            )

    def search(self, lists: IntArray, rows: IntArray, k: int, also: Sequence[IntArray] | None = None) -> TopK:
        """Return what `index.search(vectors[rows], k, exclude=self.excluded(lists, also))` returns.

        Args:
            lists: (B,) int64: the number of each query's list.
            rows: (B,) int64: the row of its vector.
            k: At least 1.
            also: B vectors of item ids that must not come back either; unknown and repeated ones are fine.

        Raises:
            ValueError: A number is out of range, or as `ItemIndex.search`.
        """
        if len(lists) != len(rows) or not lists.dtype == rows.dtype == np.int64 or k < 1:
            raise ValueError(
                f"got {len(lists)} lists of {lists.dtype}, {len(rows)} rows of {rows.dtype} and k {k}, expected as "
                "many of int64, and at least 1"
            )
        if self._compiled is not None and len(rows):
            more = _no_ids(len(rows)) if also is None else _joined(also, len(rows))
            answers = self._compiled.search(lists, rows, *more, k)
            if answers is not None:
                self._index.require_unchanged()
                return TopK(answers.rows, answers.scores, answers.certified, answers.rescored)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self._vectors):
            raise ValueError(f"got rows {rows.min()} to {rows.max()}, expected 0 to {len(self._vectors) - 1}")
        return self._index.search(self._vectors[rows], k, exclude=self.excluded(lists, also))

    def excluded(self, lists: IntArray, also: Sequence[IntArray] | None = None) -> ExcludedRows:
        """Return what a search excludes, for `ItemIndex.search`; arguments as there."""
        listed = self._excluded.take(lists.tolist())
        if also is None:
            return listed
        ids = self._index.ids[listed.rows]
        spans = itertools.pairwise(listed.offsets)
        both = [np.concatenate([ids[first:end], more]) for (first, end), more in zip(spans, also, strict=True)]
        return self._index.excluded_rows(*_joined(both, len(lists)))

    def warm_up(self) -> None:
        """Search once, so that the next caller waits for nothing to be compiled; see `ItemIndex.warm_up`."""
        if self._compiled is not None and len(self._excluded) and len(self._vectors):
            self._compiled.warm_up()


def _joined(lists: Sequence[IntArray], batch: int) -> tuple[IntArray, IntArray]:
    """Return vectors of ids end to end, and their offsets."""
    if len(lists) != batch:
        raise ValueError(f"also: got {len(lists)} id vectors, expected one for each of {batch} queries")
    return end_to_end(lists)


@functools.lru_cache(maxsize=256)
def _no_ids(batch: int) -> tuple[IntArray, IntArray]:
    return counted(0), frozen(np.zeros(batch + 1, np.int64))
