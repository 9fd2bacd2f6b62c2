"""The search under test, over a table that was made on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench.device.clock import Work
from bench.device.tables import device_codes
from fuserec.kernels import ItemIndex, TopK

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def rehearsal_backend() -> str:
    """Return "interpret" where Triton's interpreter runs the kernels; that of 3.6 does not with numpy 2.4."""
    try:
        ItemIndex.build(np.eye(20, dtype=np.float32)).search(np.ones((1, 20), np.float32), 2, backend="interpret")
    except Exception:  # whatever an interpreter of another age comes to
        return "reference"
    return "interpret"


@dataclass(frozen=True)
class Subject:
    """An index, and where it is searched."""

    index: ItemIndex
    backend: str

    def search(self, queries: Floats, k: int, excluded: Ints | None) -> TopK:
        """Search from host arrays to host arrays; `excluded` is (B, E) item ids."""
        return self.index.search(queries, k, exclude=excluded, backend=self.backend)  # type: ignore[arg-type]

    def work(self, queries: torch.Tensor, k: int, excluded: torch.Tensor | None) -> Work | None:
        """Return what searches from tensors on the device to tensors there, and never waits; None where it cannot."""
        return None


def subject(rows: torch.Tensor, place: str, device: str) -> Subject:
    """Return the search over `rows` (N, D) float32 or float16, which are on `device`."""
    if device == "cpu":
        return Subject(ItemIndex.build(rows.numpy()), "reference")  # the interpreter takes seconds a search
    if place == "host":
        raise NotImplementedError("rows on the host")
    return Subject(_resident(rows), "cuda")


def _resident(rows: torch.Tensor) -> ItemIndex:
    """Return an index whose table is on the device already; on the host there is its shape and nothing else."""
    from fuserec.kernels.search._cuda_inputs import ALIGNMENT, DeviceCodes, DeviceTable, reach

    count, dim = rows.shape
    values, scales, residuals = device_codes(rows)
    lengths = torch.empty(count, dtype=torch.float64, device=rows.device)
    for start in range(0, count, 1 << 18):
        part = slice(start, start + (1 << 18))
        lengths[part] = scales[part].double() * values[part].double().square().sum(1).sqrt()
    reaches = reach(lengths, residuals.double(), dim).float()
    missing = -dim % ALIGNMENT
    padded, items = (torch.nn.functional.pad(one, (0, missing)) if missing else one for one in (values, rows))
    shape_only: Any = np.broadcast_to(np.zeros(1, np.float32), (count, dim))
    index = ItemIndex(shape_only, np.arange(count), "dot", float(rows.abs().max()), None)
    device = f"cuda:{torch.cuda.current_device()}"
    index._resident[device] = DeviceTable(items, DeviceCodes(padded, scales, reaches), dim)
    return index
