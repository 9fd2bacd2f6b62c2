"""An item index on a GPU: tensors in, tensors out, on the caller's stream; for those who work on there with the answer.

>>> found = index.to("cuda").search(user_vectors, k=100, exclude=seen)   # all on the device, nothing waits
>>> found = on_device.repair(found)                                       # the one wait, where exactness must be shown
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fuserec.contract import NO_ID
from fuserec.kernels._arrays import Array, IntArray, counted
from fuserec.kernels.filters import ExcludedRows, RowFilter
from fuserec.kernels.query import Pool
from fuserec.kernels.search import op
from fuserec.kernels.search._cuda import HostAnswer, Searcher, open_device
from fuserec.kernels.search._cuda_body import Source, as_flags
from fuserec.kernels.search._cuda_request import Request, as_request
from fuserec.kernels.search._cuda_table import Placement, to_device_table
from fuserec.kernels.search.gpu_bucket import GpuSettings

if TYPE_CHECKING:
    from fuserec.kernels.index import ItemIndex


@dataclass(frozen=True, eq=False)
class DeviceTopK:
    """The answer of a search on the device, best first; tensors there, and yours to keep.

    Attributes:
        ids: (B, k) int64 item ids; -1 where fewer than k items passed the filters.
        scores: (B, k) float32; -inf there.
        certified: (B,) bool: the answer is proven exact. Where it is false, `DeviceIndex.repair` finds the exact one.
        sound: (B,) bool: false for a query that is NaN, infinite, too large for float32 scores, or zero under cosine.
            Its ids are -1 and its scores NaN; `repair` raises.
        rescored: (B,) int32: item rows read for the answer.
    """

    ids: torch.Tensor
    scores: torch.Tensor
    certified: torch.Tensor
    sound: torch.Tensor
    rescored: torch.Tensor
    _asked: tuple[Request, int] = field(repr=False)
    _magnitudes: torch.Tensor = field(repr=False)


class DeviceIndex:
    """Made by `ItemIndex.to`. It holds no reference to the index but for its ids.

    Args:
        index: What is searched.
        device: "cuda", "cuda:N", or "interpret": the CPU, under Triton's interpreter, for tests.
        rows: Where the item rows lie: "device", or "host", in locked memory that the device reads through the bus.
        settings: How much memory searches may use.

    Attributes:
        device: Where it is.
        settings: As given.
    """

    def __init__(self, index: ItemIndex, device: str, rows: Placement, settings: GpuSettings) -> None:
        if rows not in ("device", "host"):
            raise ValueError(f'invalid rows={rows!r}: must be "device" or "host"')
        self.device, self.settings = open_device(device), settings
        self._ids, self._max_abs = index.ids, index.max_abs
        self._table = to_device_table(
            index.embeddings,
            index.ids,
            index.codes,
            self.device,
            normalize=index.metric == "cosine",
            max_abs=index.max_abs,
            placement=rows,
        )
        self._searcher = Searcher(self._table, settings)

    @property
    def device_bytes(self) -> int:
        """Bytes that the index takes on the device, without the buffers of searches."""
        return self._table.device_bytes

    @property
    def rows_on(self) -> Placement:
        """Where the item rows lie."""
        return self._table.placement

    @property
    def row_dtype(self) -> str:
        """Dtype of the item rows: float32, or float16 or bfloat16 where that holds every entry exactly."""
        return self._table.row_dtype

    def search(self, query: torch.Tensor, k: int, *, exclude: object = None, allow: object = None) -> DeviceTopK:
        """Return the k best items of each query, in line on the current stream; nothing waits for the device.

        Nothing is checked that would have to be read back. A query without sound scores is flagged, not refused.

        Args:
            query: (B, D) float32, float16 or bfloat16 tensor on the device, B at least 1. It and the filters are not to
                be written to before `repair` is done.
            k: At least 1.
            exclude: None; a (B, E) int64 tensor of item ids, -1 for padding; a tuple `(ids, offsets)` of int64 tensors
                in CSR form; or `ExcludedRows`, which are copied to the device. Unknown and repeated ids are fine.
            allow: None; or a bool tensor of shape (N,) or (B, N), in the order of the ids of the index.

        Raises:
            ValueError: A shape, dtype or device is not as it should be.
            DeviceError: As `ItemIndex.search`.
        """
        _check_k(k)
        if not isinstance(query, torch.Tensor) or query.ndim != 2 or query.shape[1] != self._table.dim:
            raise ValueError(f"invalid query={_told(query)}: must be a tensor of {self._table.dim} columns")
        if not query.is_floating_point() or query.dtype == torch.float64 or not len(query):
            raise ValueError(f"invalid query={_told(query)}: must be float32, float16 or bfloat16, of at least 1 row")
        self._check_device(query, "query")
        batch = len(query)
        arrays: dict[str, Any] = {"table": query.detach().float()}
        longest = 0
        if exclude is not None:
            rows, offsets, longest = self._excluded(exclude, batch)
            if longest:
                arrays |= {"out_offsets": offsets, "out_rows": rows}
        if allow is not None:
            arrays["allow"] = self._allowed(allow, batch)
        return self._found(Request("dense", batch, arrays, longest, self._searcher.source), int(k))

    def repair(self, found: DeviceTopK) -> DeviceTopK:
        """Return the exact answer: as found where it is proven, by a scan of every row in float elsewhere.

        Waits for the device, to read the flags. `certified` stays as it was: it tells what the first pass proved.

        Raises:
            ValueError: A query has no sound scores.
        """
        request, k = found._asked
        proven, sound = found.certified.cpu().numpy(), found.sound.cpu().numpy()
        if not sound.all():
            self._check(found._magnitudes.cpu().numpy())
        left = np.flatnonzero(~proven)
        if not left.size:
            return found
        scanned = self._searcher.search_on_device(request.take(left), k, exhaustive=True)
        at = torch.from_numpy(left).to(self.device)
        return DeviceTopK(
            found.ids.index_copy(0, at, scanned["found_ids"]),
            found.scores.index_copy(0, at, scanned["scores"]),
            found.certified,
            found.sound,
            found.rescored.index_copy(0, at, scanned["rescored"]),
            found._asked,
            found._magnitudes,
        )

    def search_from_host(self, pool: Pool, out: RowFilter, k: int) -> HostAnswer:
        """Answer as `ItemIndex.search` does, whose arguments these are once they are checked."""
        return self._answer(self._searcher, as_request(pool, out), k)

    def known(self, vectors: Array, excluded: ExcludedRows) -> DeviceKnown:
        """Return a search for queries whose vectors and lists lie on the device; see `KnownQueries`."""
        return DeviceKnown(self, vectors, excluded)

    def _answer(self, searcher: Searcher, request: Request, k: int) -> HostAnswer:
        """Answer from the host; no more columns than there are items travel back."""
        reach = min(k, self._table.rows)
        found = searcher.search(request, reach)
        self._check(found.magnitudes)
        if reach == k:
            return found
        tail = ((0, 0), (0, k - reach))
        ids = np.pad(found.ids, tail, constant_values=NO_ID)
        scores = np.pad(found.scores, tail, constant_values=-np.inf)
        return HostAnswer(ids, scores, found.magnitudes, found.certified, found.rescored)

    def _check(self, magnitudes: Array) -> None:
        op.check_magnitudes(magnitudes, normalize=self._table.normalize, max_abs=self._max_abs)

    def _found(self, request: Request, k: int) -> DeviceTopK:
        found = self._searcher.search_on_device(request, k)
        proven, sound = as_flags(found["flags"])
        return DeviceTopK(
            found["found_ids"],
            found["scores"],
            proven,
            sound,
            found["rescored"],
            (request, k),
            found["magnitudes"],
        )

    def _excluded(self, exclude: object, batch: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return rows, ascending within a query, offsets, and the length of the longest list or more."""
        if isinstance(exclude, ExcludedRows):
            if len(exclude) != batch or exclude.n_rows != self._table.rows:
                raise ValueError(
                    f"invalid exclude={len(exclude)} lists over {exclude.n_rows} items: must be {batch} over "
                    f"{self._table.rows}"
                )
            longest = int(np.diff(exclude.offsets).max())
            return self._copied(exclude.rows), self._copied(exclude.offsets), longest
        if isinstance(exclude, torch.Tensor) and exclude.ndim == 2 and len(exclude) == batch:
            self._check_device(exclude, "exclude")
            width = exclude.shape[1]
            offsets = torch.arange(0, batch * width + 1, max(1, width), device=self.device)
            return self._rows_of(exclude).sort(1).values.flatten(), offsets, width
        if isinstance(exclude, tuple) and len(exclude) == 2 and all(isinstance(one, torch.Tensor) for one in exclude):
            ids, offsets = exclude
            self._check_device(ids, "exclude ids")
            self._check_device(offsets, "exclude offsets")
            if ids.ndim != 1 or offsets.shape != (batch + 1,) or offsets.dtype != torch.int64:
                raise ValueError(
                    f"invalid exclude=({_told(ids)}, {_told(offsets)}): must be ids and {batch + 1} int64 offsets"
                )
            # In the order of (query, row): a sort by row, then a stable one by query.
            rows, order = self._rows_of(ids).sort()
            of_query = torch.bucketize(order, offsets[1:], right=True)
            return rows[of_query.argsort(stable=True)], offsets, len(ids)
        raise ValueError(
            f"invalid exclude={_told(exclude)}: must be a tensor of {batch} lists, a tuple (ids, offsets) of tensors, "
            "or ExcludedRows"
        )

    def _rows_of(self, item_ids: torch.Tensor) -> torch.Tensor:
        """Return the row of each item id; N, which no row is, where the index does not hold it."""
        if item_ids.dtype != torch.int64:
            raise ValueError(f"invalid exclude={_told(item_ids)}: must be int64 item ids")
        rows = torch.searchsorted(self._table.item_ids, item_ids.contiguous())
        known = self._table.item_ids[rows.clamp(max=self._table.rows - 1)] == item_ids
        return torch.where(known, rows, self._table.rows)

    def _allowed(self, allow: object, batch: int) -> torch.Tensor:
        shapes = ((self._table.rows,), (batch, self._table.rows))
        if not isinstance(allow, torch.Tensor) or allow.dtype != torch.bool or tuple(allow.shape) not in shapes:
            raise ValueError(f"invalid allow={_told(allow)}: must be a bool tensor of shape {shapes[0]} or {shapes[1]}")
        self._check_device(allow, "allow")
        return allow.reshape(-1, self._table.rows).contiguous().view(torch.uint8)

    def _check_device(self, tensor: torch.Tensor, name: str) -> None:
        if tensor.device != self.device:
            raise ValueError(f"invalid {name}={_told(tensor)}: must be on {self.device}")

    def _copied(self, array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(np.array(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def __repr__(self) -> str:
        return (
            f"DeviceIndex(rows={self._table.rows}, dim={self._table.dim}, device={str(self.device)!r}, "
            f"rows_on={self.rows_on!r}, row_dtype={self.row_dtype!r}, device_bytes={self.device_bytes})"
        )


class DeviceKnown:
    """Queries by number: their vectors and the lists of what each excludes lie on the device.

    Args:
        index: What is searched.
        vectors: (V, D) float32; copied, and again, in part, by `refresh`.
        excluded: U lists of rows of the index.
    """

    def __init__(self, index: DeviceIndex, vectors: Array, excluded: ExcludedRows) -> None:
        self._index, self._vectors = index, vectors
        lengths = np.diff(excluded.offsets)
        self._source = Source(
            index._copied(vectors),
            index._copied(excluded.offsets),
            index._copied(excluded.rows if len(excluded.rows) else np.full(1, -1)),
            int(lengths.max(initial=0)),
        )
        self._searcher = Searcher(index._table, index.settings, self._source)

    def search(self, lists: IntArray, rows: IntArray, k: int, also: RowFilter) -> HostAnswer:
        """Answer B queries: query b is vector `rows[b]`, and excludes list `lists[b]` and what `also` does.

        Raises:
            ValueError: As `ItemIndex.search`.
        """
        pool = Pool("lookup", self._vectors, rows, counted(len(rows) + 1), self._vectors[0, :0])
        return self._index._answer(self._searcher, as_request(pool, also, self._source, lists), k)

    def refresh(self, rows: IntArray) -> None:
        """Copy these vectors to the device anew; searches that were asked before still read the old ones."""
        assert self._source.table is not None
        self._source.table[self._index._copied(rows)] = self._index._copied(self._vectors[rows])


def _check_k(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"invalid k={k!r}: must be an integer of at least 1")


def _told(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of {tuple(value.shape)} on {value.device}"
    return type(value).__name__
