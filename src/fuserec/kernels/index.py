"""The item index: the item table of a retriever, ready to be searched, saved and mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np

from fuserec.contract import NO_ID
from fuserec.kernels import _store
from fuserec.kernels._arrays import (
    Array,
    BoolArray,
    FloatArray,
    IntArray,
    aligned_empty,
    as_float_matrix,
    as_int_vector,
)
from fuserec.kernels._mapped import FileState, MappedFile
from fuserec.kernels.filters import ExcludedRows, as_row_filter, excluded_rows, rows_of
from fuserec.kernels.packed import PackedCodes, pack
from fuserec.kernels.quantize import Codes, quantize_rows
from fuserec.kernels.query import as_pool
from fuserec.kernels.search import op
from fuserec.kernels.search.gpu_bucket import GpuSettings
from fuserec.kernels.search.keys import MAX_ROWS

if TYPE_CHECKING:
    from fuserec.kernels.device import DeviceIndex

Metric = Literal["dot", "cosine"]
CodeKind = Literal["int8", "none"]
Placement = Literal["device", "host"]

_BLOCK_ROWS = 1 << 13  # rows put in order at a time, so that there is no second copy of the table


class TopK(NamedTuple):
    """The answer of a search, best first: score descending, then item id ascending.

    Attributes:
        ids: (B, k) int64 item ids; `NO_ID` where fewer than k items passed the filters.
        scores: (B, k) float32; -inf there.
        certified: (B,) bool: the first pass over the codes proved that the ids are those of float32 scoring of the
            original vectors. Where it is false the proof failed, and a wider search found the answer: it is just as
            exact, and took longer.
        rescored: (B,) int64: how many original vectors were read for the answer; all of them where there are no codes.
    """

    ids: IntArray
    scores: FloatArray
    certified: BoolArray
    rescored: IntArray


@dataclass(frozen=True, eq=False, repr=False)
class ItemIndex:
    """Item embeddings with their ids, searched exactly. Made by `build` or `load`.

    Attributes:
        embeddings: (N, D) float32, read-only, in the order of `ids`; of unit length under "cosine".
        ids: (N,) int64, ascending: a lower row is a lower item id, so ties between rows are ties between ids.
        metric: "dot" or "cosine".
        max_abs: Largest absolute value in `embeddings`.
        codes: The int8 codes that a search scans in their place, or None.
        file: Where it is mapped from; None for one that was built here.
    """

    embeddings: FloatArray
    ids: IntArray
    metric: Metric
    max_abs: float
    codes: PackedCodes | None
    file: MappedFile | None = None
    _resident: dict[str, Any] = field(default_factory=dict, init=False)

    @classmethod
    def build(
        cls,
        embeddings: object,
        item_ids: object = None,
        *,
        codes: CodeKind = "int8",
        metric: Metric = "dot",
    ) -> ItemIndex:
        """Copy, check and order the items.

        Args:
            embeddings: (N, D) float32, float16 or bfloat16 numpy array or torch tensor, N and D at least 1. Kept as
                float32, which holds the others exactly; a device keeps the narrowest of them that does. Under "cosine"
                rows are scaled, so that as a rule only float32 holds them.
            item_ids: (N,) integers from 0, without repeats, in any order; 0 to N - 1 when None.
            codes: "int8": scan int8 codes, a quarter of the bytes, and score from the original vectors the few items
                that the codes cannot rule out. "none": scan the vectors. The answers are the same.
            metric: "dot", or "cosine", which scales rows here and queries in `search` to unit length.

        Raises:
            ValueError: Any of that does not hold, an embedding is NaN or infinite, a row is zero under "cosine", or the
                rows are too wide to be coded (`quantize.MAX_CODED_DIM`).
        """
        if codes not in ("int8", "none"):
            raise ValueError(f"codes: got {codes!r}, expected 'int8' or 'none'")
        if metric not in ("dot", "cosine"):
            raise ValueError(f"metric: got {metric!r}, expected 'dot' or 'cosine'")
        table = as_float_matrix(embeddings, "embeddings")
        if table.size == 0 or len(table) > MAX_ROWS:
            raise ValueError(f"embeddings: got shape {table.shape}, expected 1 to {MAX_ROWS} rows of at least 1 column")
        ids = np.arange(len(table)) if item_ids is None else _checked_ids(item_ids, len(table))
        order = np.argsort(ids, kind="stable")
        rows: FloatArray = aligned_empty(table.shape, np.float32)
        for start in range(0, len(order), _BLOCK_ROWS):
            rows[start : start + _BLOCK_ROWS] = table[order[start : start + _BLOCK_ROWS]]
        _check_finite(rows, ids[order])
        if metric == "cosine":
            rows = _normalised(rows, ids[order])
        rows.flags.writeable = False
        ids = ids[order]
        ids.flags.writeable = False
        packed = pack(quantize_rows(rows), rows) if codes == "int8" else None
        return cls(rows, ids, metric, _max_abs(rows), packed)

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

        The order is score descending, then item id ascending. Every answer is exact up to pairs whose true scores
        differ by less than the float32 rounding of a sum of D products; the codes decide how fast it comes, never
        what it is.

        Args:
            query: (B, D) float32, float16 or bfloat16 array or tensor, or a `Lookup`, or a `Bag`. B may be 0.
            k: At least 1; may exceed the number of items.
            exclude: Item ids that must not come back; unknown and repeated ids are fine, `NO_ID` padding too.
                A set holds for the whole batch. A list of B id vectors, or a (B, E) array, holds one for each query.
                A tuple is `(ids, offsets)` in CSR form. `excluded_rows` makes of such lists what need not be worked out
                again at the next search.
            allow: Bool mask of the items that may come back: (N,) for the batch or (B, N), in the order of `ids`.
            backend: "cpu"; "cuda"; "interpret" (the GPU kernels under the Triton interpreter, for tests); "reference"
                (numpy, slow); or "auto": "cuda" if torch is imported already and sees a device, else "cpu".

        Raises:
            ValueError: An argument has another shape, dtype or range; a query is NaN, infinite or so large that a
                score could overflow float32; a query (an empty bag, say) is zero under "cosine"; the backend is not
                available here.
            BundleError: The file of the index was changed on disk since it was mapped.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k: got {k!r}, expected an integer of at least 1")
        pool = as_pool(query, self.dim)
        out = as_row_filter(exclude, allow, ids=self.ids, batch=pool.batch)
        resolved = op.resolve(backend)
        if resolved in ("cuda", "interpret") and pool.batch:
            answer = self.on_device(resolved).search_from_host(pool, out, int(k))
            return TopK(answer.ids, answer.scores, answer.certified, answer.rescored)
        found = op.search(
            self.embeddings,
            self.codes,
            pool,
            out,
            int(k),
            normalize=self.metric == "cosine",
            max_abs=self.max_abs,
            backend=resolved,
            resident=self._resident,
        )
        ids = np.where(found.rows < 0, np.int64(NO_ID), self.ids[found.rows])
        self.require_unchanged()
        assert found.certified is not None and found.rescored is not None  # op.search fills them
        return TopK(ids, found.scores, found.certified, found.rescored)

    def require_unchanged(self, since: FileState | None = None) -> None:
        """Raise `BundleError` where the file that it is mapped from was changed, see `MappedFile.require_unchanged`."""
        if self.file is not None:
            self.file.require_unchanged(since)

    def to(
        self, device: str = "cuda", *, rows: Placement = "device", settings: GpuSettings | None = None
    ) -> DeviceIndex:
        """Copy the index to a GPU, and search there from now on where `search` is given the backend "cuda".

        Args:
            device: "cuda" for the current one, "cuda:N", or "interpret" (see `search`).
            rows: "device": codes and item rows lie there. "host": only the codes do, a quarter of the bytes, and the
                few rows that are scored are read through the bus. The answers are the same.
            settings: How much memory searches may use there; the defaults of `GpuSettings` for None.

        Raises:
            DeviceUnavailable: There is no such device.
            DeviceMemoryError: It has too little memory free; the message says what would fit.
            DeviceError: This process is a fork of one that uses CUDA, or the rows cannot be locked in host memory.
        """
        from fuserec.kernels.device import DeviceIndex

        made = DeviceIndex(self, device, rows, settings or GpuSettings())
        self._resident["interpret" if device == "interpret" else str(made.device)] = made
        return made

    def on_device(self, backend: str) -> DeviceIndex:
        """Return what `to` made for the device of a backend; made with the defaults where it was not."""
        from fuserec.kernels.search._cuda import open_device

        name = backend if backend == "interpret" else str(open_device(backend))
        made: DeviceIndex = self._resident.get(name) or self.to(name)
        return made

    def check_vectors(self, vectors: FloatArray) -> None:
        """Raise `ValueError` where `search` would refuse one of (B, D) float32 vectors: before it is in a batch."""
        magnitudes = np.abs(vectors).sum(axis=1, dtype=np.float64)
        op.check_magnitudes(magnitudes, normalize=self.metric == "cosine", max_abs=self.max_abs)

    def warm_up(self, backend: op.Backend = "auto") -> None:
        """Search in every way there is for that a program must be compiled, so that no caller waits for it.

        Of several processes that do so at once on a machine where nothing is compiled, one compiles, on a CPU.
        """
        resolved = op.resolve(backend)
        if resolved == "cpu":
            from fuserec.kernels.search import _numba

            _numba.warm_up(has_codes=self.codes is not None)
        for batch in (1, 17, 33) if resolved == "cuda" else (1,):  # queries a program, on a GPU
            query = np.zeros((batch, self.dim), np.float32)
            query[:, 0] = 1.0
            self.search(query, 1, backend=backend)
            if resolved == "cuda":
                self.search(query, 1, exclude=[self.ids[:1]] * batch, backend=backend)

    def excluded_rows(self, excluded: IntArray, offsets: IntArray) -> ExcludedRows:
        """Return what `search` takes as `exclude`, of lists of item ids end to end.

        Args:
            excluded: (S,) int64 item ids; unknown and repeated ones are fine.
            offsets: (B + 1,) int64: list `b` is `excluded[offsets[b]:offsets[b + 1]]`.
        """
        return excluded_rows(excluded, offsets, self.ids)

    def mask(self, allow: Sequence[object]) -> BoolArray:
        """Return what `search` takes as `allow`, of B vectors of item ids: (B, N) bool; unknown ids are ignored."""
        mask = np.zeros((len(allow), self.rows), np.bool_)
        for line, item_ids in zip(mask, allow, strict=True):
            rows, known = rows_of(as_int_vector(item_ids, "allow"), self.ids)
            line[rows[known]] = True
        return mask

    def vectors(self, item_ids: object) -> FloatArray:
        """Return the embeddings of some items, as a new array: (n, D) float32 for (n,) ids.

        Raises:
            ValueError: The index does not hold one of them.
        """
        wanted = as_int_vector(item_ids, "item_ids")
        rows, known = rows_of(wanted, self.ids)
        if not known.all():
            raise ValueError(f"item_ids: got {wanted[~known][0]}, expected ids of the index")
        found = self.embeddings[rows]
        self.require_unchanged()
        return found

    def subset(self, rows: IntArray) -> ItemIndex:
        """Return an index of some rows, (n,) ascending, n at least 1: the scores are the same, to the bit.

        It has no codes: this is for few rows.
        """
        return ItemIndex(self.embeddings[rows], self.ids[rows], self.metric, self.max_abs, None)

    def row_codes(self) -> Codes | None:
        """Return the codes row by row, in the order of `ids`, as a new copy; None if there are none."""
        return None if self.codes is None else self.codes.unpack()

    def save(self, path: str | Path) -> None:
        """Write the index to one safetensors file; an older file is replaced in one step."""
        _store.write(Path(path), _store.Stored(self.ids, self.embeddings, self.codes, self.metric, self.max_abs))

    @classmethod
    def load(cls, path: str | Path) -> ItemIndex:
        """Map an index that `save` wrote; the table is paged in by the searches that read it, and never copied.

        Raises:
            FileNotFoundError: There is no such file.
            BundleError: It is not an index, of another version, truncated, or at odds with itself.
        """
        stored = _store.read(Path(path))
        metric = cast("Metric", stored.metric)
        return cls(stored.embeddings, stored.ids, metric, stored.max_abs, stored.codes, stored.file)

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
        """Size of the table, its codes and the ids in bytes."""
        codes = 0 if self.codes is None else self.codes.nbytes
        return self.embeddings.nbytes + self.ids.nbytes + codes

    def __repr__(self) -> str:
        codes = "none" if self.codes is None else "int8"
        return (
            f"ItemIndex(rows={self.rows}, dim={self.dim}, metric={self.metric!r}, codes={codes!r}, "
            f"nbytes={self.nbytes})"
        )


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
