"""Queries that are known before they are asked: the users of a service, say, with what each has seen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray, counted, end_to_end, frozen
from fuserec.kernels.filters import ExcludedRows, RowFilter, as_row_filter
from fuserec.kernels.index import ItemIndex, TopK
from fuserec.kernels.search import op

if TYPE_CHECKING:
    from fuserec.kernels.device import DeviceKnown
    from fuserec.kernels.search._known import KnownSearch


class KnownQueries:
    """Vectors and excluded rows by number, and the index in which they are searched.

    On a CPU, look-up, scores, filters and selection are one compiled call, as far as one thread does the search.
    Others, and the few whose first pass proves nothing, go the way of `ItemIndex.search`. On a GPU the vectors and the
    lists lie there, and a search brings numbers only. The answers are the same.

    Args:
        index: What is searched.
        vectors: (V, D) float32, C-contiguous, not copied: its owner may write to it between two searches, and tells
            so by `refresh`.
        excluded: U lists of rows of the index.
        backend: As in `ItemIndex.search`.

    Raises:
        ValueError: They do not fit the index, or the backend is not available here.
    """

    def __init__(
        self, index: ItemIndex, vectors: FloatArray, excluded: ExcludedRows, *, backend: op.Backend = "auto"
    ) -> None:
        is_contiguous = isinstance(vectors, np.ndarray) and vectors.flags.c_contiguous
        if not is_contiguous or vectors.dtype != np.float32 or vectors.shape[1:] != (index.dim,):
            raise ValueError(
                f"vectors: got shape {np.shape(vectors)}, expected C-contiguous float32 of {index.dim} columns as in "
                "the item index"
            )
        if excluded.n_rows != index.rows:
            raise ValueError(f"excluded: got lists over {excluded.n_rows} items, expected {index.rows}")
        self._index, self._vectors, self._excluded = index, vectors, excluded
        self._backend: op.Backend = cast("op.Backend", op.resolve(backend))
        self._compiled: KnownSearch | None = None
        self._device: DeviceKnown | None = None
        if self._backend in ("cuda", "interpret"):
            self._device = index.on_device(self._backend).known(vectors, excluded)
        if self._backend == "cpu" and index.codes is not None:
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
                return TopK(answers.rows, answers.scores, answers.certified, answers.rescored)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self._vectors):
            raise ValueError(f"got rows {rows.min()} to {rows.max()}, expected 0 to {len(self._vectors) - 1}")
        if self._device is not None and len(rows):
            if not 0 <= lists.min() <= lists.max() < len(self._excluded):
                raise ValueError(f"got lists {lists.min()} to {lists.max()}, expected 0 to {len(self._excluded) - 1}")
            answer = self._device.search(lists, rows, k, self._filter(also, len(rows)))
            return TopK(answer.ids, answer.scores, answer.certified, answer.rescored)
        return self._index.search(self._vectors[rows], k, exclude=self.excluded(lists, also), backend=self._backend)

    def refresh(self, rows: IntArray) -> None:
        """Search with the present vectors from now on: their owner wrote to these rows.

        A device searches copies of the vectors, which this brings up to date. A CPU reads the vectors themselves.

        Args:
            rows: (R,) int64 rows of the vectors.
        """
        if self._device is not None:
            self._device.refresh(rows)

    def _filter(self, also: Sequence[IntArray] | None, batch: int) -> RowFilter:
        """Return what is excluded beside the lists."""
        return as_row_filter(None if also is None else _joined(also, batch), None, ids=self._index.ids, batch=batch)

    def search_joined(self, lists: IntArray, rows: IntArray, k: int, ids: IntArray, offsets: IntArray) -> TopK:
        """Search as `search` does, with `also` end to end: that of query `b` is `ids[offsets[b]:offsets[b + 1]]`."""
        if self._compiled is not None:
            answers = self._compiled.search(lists, rows, ids, offsets, k)
            if answers is not None:
                return TopK(answers.rows, answers.scores, answers.certified, answers.rescored)
        also = [ids[first:end] for first, end in itertools.pairwise(offsets.tolist())] if len(ids) else None
        return self.search(lists, rows, k, also)

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
        if self._device is not None and len(self._excluded) and len(self._vectors):
            self.search(counted(1), counted(1), 1)


def _joined(lists: Sequence[IntArray], batch: int) -> tuple[IntArray, IntArray]:
    """Return vectors of ids end to end, and their offsets."""
    if len(lists) != batch:
        raise ValueError(f"also: got {len(lists)} id vectors, expected one for each of {batch} queries")
    return end_to_end(lists)


@functools.lru_cache(maxsize=256)
def _no_ids(batch: int) -> tuple[IntArray, IntArray]:
    return counted(0), frozen(np.zeros(batch + 1, np.int64))
