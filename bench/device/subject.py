"""The search under test, over a table that was made where it is searched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from bench.device.clock import Work
from bench.device.tables import device_codes
from fuserec.kernels import ItemIndex, TopK

if TYPE_CHECKING:
    from fuserec.kernels.device import DeviceIndex
    from fuserec.kernels.search._cuda_table import DeviceTable

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# The interpreter takes seconds for a search of more; a rehearsal asks numpy then.
_INTERPRETED_ROWS: Final = 64
_CHUNK_ROWS: Final = 1 << 18


def rehearsal_backend() -> Literal["interpret", "reference"]:
    """Return "interpret" where Triton's interpreter runs the kernels; that of 3.6 does not with numpy 2.4."""
    try:
        ItemIndex.build(np.eye(20, dtype=np.float32)).search(np.ones((1, 20), np.float32), 2, backend="interpret")
    except Exception:  # whatever an interpreter of another age comes to
        return "reference"
    return "interpret"


@dataclass(frozen=True)
class Subject:
    """An index, and where it is searched.

    Attributes:
        index: As users hold it.
        backend: Of its searches.
        there: The same on the device; None where numpy answers.
    """

    index: ItemIndex
    backend: str
    there: DeviceIndex | None

    def search(self, queries: Floats, k: int, excluded: Ints | None) -> TopK:
        """Search from host arrays to host arrays; `excluded` is (B, E) item ids."""
        return self.index.search(queries, k, exclude=excluded, backend=self.backend)  # type: ignore[arg-type]

    def work(self, queries: torch.Tensor, k: int, excluded: torch.Tensor | None) -> tuple[Work, str] | None:
        """Return what searches from tensors on the device to tensors there, and what that is: "graph" or "call".

        A batch that fits the buffers is one replay of one graph, and that alone is timed, as it is for rivals. A larger
        one is cut, and the whole call is timed. None where numpy answers.
        """
        there = self.there
        if there is None:
            return None

        def call() -> object:
            return there.search(queries, k, exclude=excluded)

        for _ in range(3):  # the first compiles, the second captures
            call()
        kept = there._searcher._kept
        before = {key: one.uses for key, one in kept.items()}
        call()
        used = [(one, one.uses - before.get(key, 0)) for key, one in kept.items() if one.uses != before.get(key, 0)]
        if len(used) == 1 and used[0][1] == 1 and used[0][0].graph is not None:
            return used[0][0].graph.replay, "graph"
        return call, "call"


def subject(rows: torch.Tensor, place: str, device: str) -> Subject:
    """Return the search over `rows` (N, D) float32 or float16, which are on `device`."""
    if device == "cpu":
        index = ItemIndex.build(rows.numpy())
        if len(rows) > _INTERPRETED_ROWS or rehearsal_backend() == "reference":
            return Subject(index, "reference", None)
        return Subject(index, "interpret", index.to("interpret"))
    index, there = resident(rows, place)
    return Subject(index, "cuda", there)


def resident(rows: torch.Tensor, place: str = "device") -> tuple[ItemIndex, DeviceIndex]:
    """Return an index over a table that is on the device already; on the host there is its shape and nothing else.

    Args:
        rows: (N, D) float32 or float16 on the device; or on the CPU, for the interpreter.
        place: Where the rows are to be: "device" or "host".
    """
    from fuserec.kernels.device import DeviceIndex
    from fuserec.kernels.search._cuda import Searcher
    from fuserec.kernels.search.gpu_bucket import GpuSettings

    shape_only: Any = np.broadcast_to(np.zeros(1, np.float32), tuple(rows.shape))
    index = ItemIndex(shape_only, np.arange(len(rows)), "dot", float(rows.abs().max()), None)
    made = DeviceIndex.__new__(DeviceIndex)
    made.device, made.settings = rows.device, GpuSettings()
    made._ids, made._max_abs = index.ids, index.max_abs
    made._table = device_table(rows, index.max_abs, place)
    made._searcher = Searcher(made._table, made.settings)
    index._resident["interpret" if rows.device.type == "cpu" else str(rows.device)] = made
    return index, made


def device_table(rows: torch.Tensor, max_abs: float, place: str) -> DeviceTable:
    """Return the table as `_cuda_table.to_device_table` makes it of an index, with no way through the host."""
    from fuserec.kernels.search import _cuda_table
    from fuserec.kernels.search.gpu_config import ALIGNMENT

    count, dim = rows.shape
    values, scales, residuals = device_codes(rows)
    reaches = torch.empty_like(scales)
    for start in range(0, count, _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        lengths = scales[part].double() * values[part].double().square().sum(1).sqrt()
        reaches[part] = _cuda_table.reach(lengths, residuals[part].double(), dim).float()
    missing = -dim % ALIGNMENT
    values, items = (torch.nn.functional.pad(one, (0, missing)) if missing else one for one in (values, rows))
    if place == "host":
        items = items.to("cpu", copy=True)
        if rows.device.type == "cuda":
            _cuda_table._lock(items)
    return _cuda_table.DeviceTable(
        items=items,
        item_ids=torch.arange(count, device=rows.device),
        codes=_cuda_table.DeviceCodes(values, scales, reaches),
        limits=_cuda_table._limits(dim, normalize=False, max_abs=max_abs).to(rows.device),
        dim=dim,
        normalize=False,
        placement="host" if place == "host" else "device",
    )
