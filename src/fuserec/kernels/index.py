"""The item index: the item table of a retriever, ready to be searched, saved and mapped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from fuserec.contract import NO_ID
from fuserec.kernels import _store
from fuserec.kernels._arrays import Array, BoolArray, FloatArray, IntArray, as_float_matrix, as_int_vector
from fuserec.kernels.filters import as_row_filter
from fuserec.kernels.query import as_pool
from fuserec.kernels.search import op
from fuserec.kernels.search.keys import MAX_ROWS

Metric = Literal["dot", "cosine"]


class TopK(NamedTuple):
    """The answer of a search, best first: score descending, then item id ascending.

    Attributes:
        ids: (B, k) int64 item ids; `NO_ID` where fewer than k items passed the filters.
        scores: (B, k) float32; -inf there.
        certified: (B,) bool: the ids are proven to be those of float32 scoring of the original vectors.
    """

    ids: IntArray
    scores: FloatArray
    certified: BoolArray


@dataclass(frozen=True, eq=False, repr=False)
class ItemIndex:
    """Item embeddings with their ids, searched exactly. Made by `build` or `load`.

    Attributes:
        embeddings: (N, D) float32, read-only, in the order of `ids`; of unit length under "cosine".
        ids: (N,) int64, ascending: a lower row is a lower item id, so ties between rows are ties between ids.
        metric: "dot" or "cosine".
        max_abs: Largest absolute value in `embeddings`.
    """

    embeddings: FloatArray
    ids: IntArray
    metric: Metric
    max_abs: float
    _resident: dict[str, Any] = field(default_factory=dict, init=False)

    @classmethod
    def build(cls, embeddings: object, item_ids: object = None, *, metric: Metric = "dot") -> ItemIndex:
        """Copy, check and order the items.

        Args:
            embeddings: (N, D) float32 or float16 numpy array or torch tensor, N and D at least 1; kept as float32.
            item_ids: (N,) integers from 0, without repeats, in any order; 0 to N - 1 when None.
            metric: "dot", or "cosine", which scales rows here and queries in `search` to unit length.

        Raises:
            ValueError: Any of that does not hold, an embedding is NaN or infinite, or a row is zero under "cosine".
        """
        if metric not in ("dot", "cosine"):
            raise ValueError(f"metric: got {metric!r}, expected 'dot' or 'cosine'")
        table = as_float_matrix(embeddings, "embeddings")
        if table.size == 0 or len(table) > MAX_ROWS:
            raise ValueError(f"embeddings: got shape {table.shape}, expected 1 to {MAX_ROWS} rows of at least 1 column")
        ids = np.arange(len(table)) if item_ids is None else _checked_ids(item_ids, len(table))
        order = np.argsort(ids, kind="stable")
        rows = np.ascontiguousarray(table[order], np.float32)
        _check_finite(rows, ids[order])
        if metric == "cosine":
            rows = _normalised(rows, ids[order])
        rows.flags.writeable = False
        ids = ids[order]
        ids.flags.writeable = False
        return cls(rows, ids, metric, _max_abs(rows))

    def search(
        self,
        query: object,
        k: int,
        *,
        exclude: object = None,
        allow: object = None,
        backend: op.Backend = "auto",
    ) -> TopK:
        """Return the k best items of each query that pass the filters.

        The order is score descending, then item id ascending. The scan reads the float32 rows in full, so every
        answer is exact up to pairs whose true scores differ by less than the float32 rounding of a sum of D products,
        and `certified` is true throughout.

        Args:
            query: (B, D) float32 or float16 array or tensor, or a `Lookup`, or a `Bag`. B may be 0.
            k: At least 1; may exceed the number of items.
            exclude: Item ids that must not come back; unknown and repeated ids are fine, `NO_ID` padding too.
                A set holds for the whole batch. A list of B id vectors, or a (B, E) array, holds one for each query.
                A tuple is `(ids, offsets)` in CSR form.
            allow: Bool mask of the items that may come back: (N,) for the batch or (B, N), in the order of `ids`.
            backend: "cpu"; "cuda"; "interpret" (the GPU kernels under the Triton interpreter, for tests); "reference"
                (numpy, slow); or "auto": "cuda" if torch is imported already and sees a device, else "cpu".

        Raises:
            ValueError: An argument has another shape, dtype or range; a query is NaN, infinite or so large that a
                score could overflow float32; a query (an empty bag, say) is zero under "cosine"; the backend is not
                available here.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k: got {k!r}, expected an integer of at least 1")
        pool = as_pool(query, self.dim)
        out = as_row_filter(exclude, allow, ids=self.ids, batch=pool.batch)
        found = op.search(
            self.embeddings,
            pool,
            out,
            int(k),
            normalize=self.metric == "cosine",
            max_abs=self.max_abs,
            backend=backend,
            resident=self._resident,
        )
        ids = np.where(found.rows < 0, np.int64(NO_ID), self.ids[found.rows])
        return TopK(ids, found.scores, np.ones(pool.batch, np.bool_))

    def save(self, path: str | Path) -> None:
        """Write the index to one safetensors file; an older file is replaced in one step."""
        _store.write(Path(path), _store.Stored(self.ids, self.embeddings, self.metric, self.max_abs))

    @classmethod
    def load(cls, path: str | Path) -> ItemIndex:
        """Map an index that `save` wrote; the table is paged in by the searches that read it, and never copied.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not an index, of another version, truncated, or at odds with itself.
        """
        stored = _store.read(Path(path))
        return cls(stored.embeddings, stored.ids, cast("Metric", stored.metric), stored.max_abs)

    @property
    def rows(self) -> int:
        """Number of items, N."""
        return self.embeddings.shape[0]

    @property
    def dim(self) -> int:
        """Width of an embedding, D."""
        return self.embeddings.shape[1]

    @property
    def nbytes(self) -> int:
        """Size of the table and the ids in bytes."""
        return self.embeddings.nbytes + self.ids.nbytes

    def __repr__(self) -> str:
        return f"ItemIndex(rows={self.rows}, dim={self.dim}, metric={self.metric!r}, nbytes={self.nbytes})"


def _checked_ids(item_ids: object, rows: int) -> IntArray:
    ids = as_int_vector(item_ids, "item_ids")
    if len(ids) != rows:
        raise ValueError(f"item_ids: got {len(ids)} ids, expected one for each of {rows} embeddings")
    if ids.min() < 0:
        raise ValueError(f"item_ids: got {ids.min()}, expected ids from 0, as {NO_ID} stands for no item")
    values, counts = np.unique(ids, return_counts=True)
    if len(values) != rows:
        raise ValueError(f"item_ids: got {values[counts > 1][0]} more than once, expected no repeats")
    return ids


def _max_abs(rows: FloatArray) -> float:
    """Return the largest absolute value, or NaN or infinity if there is one, with no temporary array."""
    return float(max(rows.max(), -rows.min(), key=lambda value: (np.isnan(value), value)))


def _check_finite(rows: FloatArray, ids: IntArray) -> None:
    if not np.isfinite(_max_abs(rows)):
        at = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"embeddings: got NaN or infinity in the row of item {ids[at]}, expected finite values")


def _normalised(rows: FloatArray, ids: IntArray) -> FloatArray:
    """Return rows of unit length; the norm is taken in float64, where no float32 over- or underflows."""
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    zero = np.flatnonzero(norms == 0)
    if zero.size:
        raise ValueError(f"embeddings: got a zero row for item {ids[zero[0]]}, expected none under the cosine metric")
    scaled: Array = rows / norms[:, None]
    return scaled.astype(np.float32)
