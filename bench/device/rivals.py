"""What a user of torch would write instead: a matrix product and a top-k, in every precision and as fast as it goes.

Each rival is given the best it can have: its own table of its own precision on the device beforehand, buffers that
stay, pinned memory both ways, and a CUDA graph wherever one can be captured. Excluded items get a score of -inf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from bench.device.clock import Work, captured

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # queries (B, D), table (N, D) to scores (B, N)

_SCORES_BYTES: Final = 4 << 30  # of a chunk of queries
_LEAST_INT_MM_ROWS: Final = 32  # torch._int_mm wants more than 16
DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Kind:
    """One way to search.

    Attributes:
        name: As rows of the results name it.
        dtype: Of its table: a name of `DTYPES`, or "int8".
        graph: Replayed from a CUDA graph.
        compiled: By torch.compile with mode "max-autotune".
        stages: 1: one top-k over all scores; 2: one over each chunk of them, and one over what these found.
    """

    name: str
    dtype: str
    graph: bool = False
    compiled: bool = False
    stages: int = 1

    @property
    def exact(self) -> bool:
        """Whether it is meant to return the best; what int8 codes alone find is shown beside."""
        return self.dtype != "int8"


KINDS: Final = (
    Kind("eager fp32", "fp32"),
    Kind("eager fp16", "fp16"),
    Kind("eager bf16", "bf16"),
    Kind("graph fp32", "fp32", graph=True),
    Kind("graph fp16", "fp16", graph=True),
    Kind("two-stage fp16", "fp16", graph=True, stages=2),
    Kind("compiled fp16", "fp16", graph=True, compiled=True),
    Kind("int8 inexact", "int8", graph=True),
)


class Tables:
    """The item table in the precision of each rival, made when it is first asked for.

    Args:
        rows: (N, D) float32 or float16 on the device.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self._made: dict[str, torch.Tensor] = {}

    def of(self, dtype: str) -> torch.Tensor:
        """Return the table in a precision."""
        if dtype not in self._made:
            if dtype == "int8":
                scale = 127 / self._rows.abs().amax().float()
                self._made[dtype] = (self._rows.float() * scale).round().to(torch.int8)
            else:
                self._made[dtype] = self._rows.to(DTYPES[dtype])
        return self._made[dtype]


class Rival:
    """One way to search one table with one shape; buffers and graph are made here.

    Args:
        kind: How.
        table: (N, D) of the kind's precision.
        batch: Queries a call.
        k: Items asked for.
        excluded: (B, E) int64 rows that the queries exclude, or None.
        device: "cuda", or "cpu" in a rehearsal.
    """

    def __init__(
        self, kind: Kind, table: torch.Tensor, batch: int, k: int, excluded: torch.Tensor | None, device: str
    ) -> None:
        self.kind, self._device = kind, device
        dim = table.shape[1]
        self.queries = torch.zeros((batch, dim), device=device)
        pinned = device == "cuda"
        self._staged = torch.zeros((batch, dim), pin_memory=pinned)
        self._found: list[torch.Tensor] = []
        search = _search(kind, table, k, device)
        chunk = max(1, min(batch, _SCORES_BYTES // (table.shape[0] * (2 if kind.dtype != "fp32" else 4))))
        excluded_parts = [None if excluded is None else excluded[at : at + chunk] for at in range(0, batch, chunk)]

        def work() -> None:
            found = [
                search(self.queries[at * chunk : (at + 1) * chunk], part) for at, part in enumerate(excluded_parts)
            ]
            scores, ids = zip(*found, strict=True)
            self._found = [torch.cat(scores), torch.cat(ids)] if len(found) > 1 else list(found[0])

        self.work: Work = captured(work, device) if kind.graph else work
        self.work()
        # Inside a graph the same tensors are written at every replay.
        self._back: list[torch.Tensor] = [
            torch.empty_like(tensor, device="cpu", pin_memory=pinned) for tensor in self._found
        ]

    def search(self, queries: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Search from a host array to host arrays: scores and rows, (B, k) each."""
        self._staged.numpy()[:] = queries
        self.queries.copy_(self._staged, non_blocking=True)
        self.work()
        for there, here in zip(self._back, self._found, strict=True):
            there.copy_(here, non_blocking=True)
        if self._device == "cuda":
            torch.cuda.current_stream().synchronize()
        scores, rows = self._back
        return scores.float().numpy(), rows.numpy().copy()


def _search(
    kind: Kind, table: torch.Tensor, k: int, device: str
) -> Callable[[torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]:
    def search(queries: torch.Tensor, excluded: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        scores = _int_scores(queries, table) if kind.dtype == "int8" else queries.to(table.dtype) @ table.T
        if excluded is not None:
            scores = scores.scatter(1, excluded, -torch.inf)
        if kind.stages == 1:
            values, rows = torch.topk(scores, k)
            return values, rows
        return _two_stages(scores, k)

    if not kind.compiled:
        return search
    if device == "cpu":  # a rehearsal: traced, and run as it is
        return torch.compile(search, backend="eager", dynamic=False)
    return torch.compile(search, mode="max-autotune-no-cudagraphs", dynamic=False)  # the graph is captured outside


def _int_scores(queries: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return scores from int8 codes with one scale for the table and one for the queries, as float16."""
    codes = (queries * (127 / queries.abs().amax().clamp(min=1e-30))).round().to(torch.int8)
    missing = max(0, _LEAST_INT_MM_ROWS - len(codes))
    codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
    products = torch._int_mm(codes, table.T)[: len(queries)]
    return (products.float() * (1.0 / (127 * 127))).half()


def _two_stages(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best of the k best of each chunk; the chunks are as many as give two sorts of like size."""
    rows = scores.shape[1]
    chunks = max(1, min(256, int((rows / max(k, 1)) ** 0.5)))
    size = -(-rows // chunks)
    if size < k or chunks == 1:
        values, found = torch.topk(scores, k)
        return values, found
    padded = torch.nn.functional.pad(scores, (0, chunks * size - rows), value=-torch.inf)
    best, at = padded.view(len(scores), chunks, size).topk(k, dim=2)
    at = at + (torch.arange(chunks, device=scores.device) * size)[None, :, None]
    values, which = best.flatten(1).topk(k)
    return values, at.flatten(1).gather(1, which)
