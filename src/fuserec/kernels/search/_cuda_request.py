"""What one call asks of a GPU search, from the host or on the device, and how it is laid into the block of a body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fuserec.kernels._arrays import IntArray, counted, end_to_end, is_on_device
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.query import Pool
from fuserec.kernels.search._cuda_body import Block, Source
from fuserec.kernels.search.gpu_bucket import Bucket, Kind


@dataclass(frozen=True, eq=False)
class Request:
    """B queries with their filters; all arrays are numpy's, or all are tensors on the device.

    Attributes:
        kind: As in `Bucket`.
        batch: B.
        arrays: What `gpu_bucket.input_sections` names, but for the sizes, and without room to spare.
        longest: Rows of the longest list in `out_rows`, or more.
        source: What lies on the device besides.
    """

    kind: Kind
    batch: int
    arrays: Mapping[str, Any]
    longest: int
    source: Source

    def bucket(self, k: int) -> Bucket:
        """Return the bucket of exactly this size."""
        is_bag = self.kind == "bag"
        return Bucket(
            self.kind,
            self.batch,
            k,
            is_resident="table" not in self.arrays,
            terms=len(self.arrays["ids"]) if is_bag else 0,
            weighted="weights" in self.arrays,
            longest=self.longest,
            excluded=len(self.arrays["out_rows"]) if self.longest else 0,
            seen="lists" in self.arrays,
            masks=len(self.arrays["allow"]) if "allow" in self.arrays else 0,
        )

    def take(self, queries: IntArray) -> Request:
        """Return some of the queries, as another request; lists on the device stay as they are, under offsets there.

        Args:
            queries: (Q,) int64, ascending.
        """
        taken = dict(self.arrays)
        at: Any = queries
        if any(isinstance(array, torch.Tensor) for array in taken.values()):
            at = torch.from_numpy(queries).to(next(iter(taken.values())).device)
        for name in ("ids", "lists", "table"):
            if name in taken and self.kind != "bag":
                taken[name] = taken[name][at]
        if "lists" in taken and self.kind == "bag":
            taken["lists"] = taken["lists"][at]
        if len(taken.get("allow", ())) > 1:
            taken["allow"] = taken["allow"][at]
        if self.kind == "bag":
            offsets = self.arrays["bags"]
            taken["bags"] = _taken_lists(offsets, counted(len(self.arrays["ids"])), queries)[1]
            terms, _ = _taken_lists(offsets, counted(len(self.arrays["ids"])), queries)
            for name in ("ids", "weights"):
                if name in taken:
                    taken[name] = taken[name][terms]
            if "table" in taken:
                taken["table"], taken["ids"] = taken["table"][terms], counted(len(terms))
        if self.longest:
            taken |= _taken_exclusions(self.arrays["out_offsets"], self.arrays["out_rows"], queries, at)
        return replace(self, batch=len(queries), arrays=taken)


def _taken_lists(offsets: IntArray, values: IntArray, queries: IntArray) -> tuple[IntArray, IntArray]:
    return end_to_end([values[offsets[b] : offsets[b + 1]] for b in queries])


def _taken_exclusions(offsets: Any, rows: Any, queries: IntArray, at: Any) -> dict[str, Any]:
    if not isinstance(rows, torch.Tensor):
        taken, ends = _taken_lists(offsets, rows, queries)
        return {"out_offsets": ends, "out_rows": taken if len(taken) else np.full(1, -1)}
    spans = [(int(offsets[b]), int(offsets[b + 1])) for b in queries]
    ends = np.cumsum([0, *(stop - start for start, stop in spans)])
    parts = [rows[start:stop] for start, stop in spans]
    return {
        "out_offsets": torch.from_numpy(ends.astype(np.int64)).to(rows.device),
        "out_rows": torch.cat([*parts, rows.new_full((1,), -1)]),
    }


def as_request(pool: Pool, out: RowFilter, source: Source | None = None, lists: IntArray | None = None) -> Request:
    """Return the request of queries and filters on the host.

    Args:
        pool: The queries. With a table on the device they look up there.
        out: Rows that may not come back.
        source: Where `pool.ids` are to be looked up in place of `pool.table`.
        lists: (B,) int64 numbers of the lists of `source`.
    """
    arrays: dict[str, Any] = {}
    kind: Kind = "dense"
    if source is not None:
        kind = "lookup"
        arrays |= {"ids": pool.ids, "lists": lists}
    elif pool.kind == "bag":
        kind = "bag"
        arrays |= {"bags": pool.offsets} | ({"weights": pool.weights} if pool.weights.size else {})
        if is_on_device(pool.table):
            arrays["ids"], source = pool.ids, Source(pool.table)
        else:
            # No more of a table than the rows that are named travels to the device.
            arrays |= {"ids": counted(len(pool.ids)), "table": pool.table[pool.ids]}
    elif is_on_device(pool.table):
        kind, source = "lookup", Source(pool.table)
        arrays["ids"] = pool.ids
    else:
        arrays["table"] = pool.table if pool.kind == "dense" else pool.table[pool.ids]
    longest = int(np.diff(out.offsets).max())
    if longest:
        arrays |= {"out_offsets": out.offsets, "out_rows": out.rows}
    if len(out.allow):
        arrays["allow"] = out.allow.view(np.uint8)
    return Request(kind, pool.batch, arrays, longest, source or Source())


def fill_from_host(block: Block, request: Request, k: int) -> int:
    """Write a request into the host side of a block; return how many bytes of it are in use."""
    block.arrays["sizes"][:] = request.batch, k
    used = block.stop_of("sizes", 2)
    for name, array in request.arrays.items():
        block.arrays[name][: len(array)] = array
        used = max(used, block.stop_of(name, len(array)))
    return used


def fill_on_device(block: Block, request: Request, k: int) -> None:
    """Write a request of tensors into a block, in line on the current stream."""
    block.tensors["sizes"][0].fill_(request.batch)
    block.tensors["sizes"][1].fill_(k)
    for name, tensor in request.arrays.items():
        block.tensors[name][: len(tensor)].copy_(tensor)
