"""The rival on a GPU: FastAPI in front of the torch module and a float16 item table, both there, with batching.

What torch does best is taken: one product of the batch and the table, what was seen set to minus infinity, and of two
ways to the top k the one that is faster on this card. Calls that come while a batch runs form the next one. Scores are
those of float16, so near ties may change places: unlike ours it is not exact. On a CPU, for rehearsals, the table is
float32. uvicorn starts `create`, see `rival.py`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request, Response
from torch import Tensor

from bench.serving.rival_settings import CHECKPOINT, DEVICE, INDEX
from fuserec.kernels import ItemIndex
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever

MAX_BATCH: Final = 64
_CHUNKS: Final = 256
_COPY_ROWS: Final = 1 << 18

Asked = dict[str, Any]


def plain_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of each row: `torch.topk`."""
    best = scores.topk(k, dim=1)
    return best.values, best.indices


def two_stage_top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the same: the k best of each of `_CHUNKS` parts of a row, then the k best of those."""
    batch, n = scores.shape
    width = n // _CHUNKS
    if width < k:
        return plain_top(scores, k)
    head = scores[:, : width * _CHUNKS].view(batch, _CHUNKS, width).topk(k, dim=2)
    starts = torch.arange(_CHUNKS, device=scores.device)[:, None] * width
    values, rows = head.values.flatten(1), (head.indices + starts).flatten(1)
    if width * _CHUNKS < n:
        rest = torch.arange(width * _CHUNKS, n, device=scores.device).expand(batch, -1)
        values, rows = torch.cat([values, scores[:, width * _CHUNKS :]], 1), torch.cat([rows, rest], 1)
    best = values.topk(k, dim=1)
    return best.values, rows.gather(1, best.indices)


Top = Callable[[Tensor, int], tuple[Tensor, Tensor]]


class GpuRival:
    """Answers batches as the pipeline does: what a user has seen is not shown to them again.

    Args:
        checkpoint: Folder of the trained model, whose item ids rise with its rows.
        index: The vectors that the pipeline searches.
        device: `cuda`, or `cpu` in a rehearsal.
    """

    def __init__(self, checkpoint: Path, index: Path, device: str) -> None:
        loaded = Checkpoint.load(checkpoint)
        module = loaded.module()
        if not isinstance(module, Retriever):
            raise SystemExit(f"{checkpoint} holds a {loaded.architecture}, which finds no items; expected a retriever")
        self._device = torch.device(device)
        self._tower, self._max_history = module.user_tower.to(self._device).eval(), module.config.max_history
        self._item_rows = {item: row for row, item in enumerate(loaded.items["item_id"].to_list(), start=1)}
        self._user_rows = {user: row for row, user in enumerate(loaded.users["user_id"].to_list(), start=1)}
        self._histories = [np.array(history, dtype=np.int64) for history in loaded.users["history"].to_list()]
        items = ItemIndex.load(index)
        self._ids = items.ids
        dtype = torch.float16 if device == "cuda" else torch.float32
        self._table = torch.empty(items.rows, items.dim, dtype=dtype, device=self._device)
        for first in range(0, items.rows, _COPY_ROWS):
            part = np.array(items.embeddings[first : first + _COPY_ROWS])
            self._table[first : first + len(part)] = torch.from_numpy(part).to(self._device, dtype)
        self.top = min((plain_top, two_stage_top), key=self._seconds)

    def _seconds(self, top: Top) -> float:
        """Time a way to the best 10 of a batch."""
        scores = torch.randn(16, len(self._table), device=self._device).to(self._table.dtype)
        took = []
        for _ in range(4):
            began = time.perf_counter()
            top(scores, 10)[1].cpu()
            took.append(time.perf_counter() - began)
        return min(took[1:])

    def recommend(self, asked: Sequence[Asked]) -> list[dict[str, Any]]:
        """Answer up to `MAX_BATCH` calls: `user_id`, `history`, `exclude` and `k` in; `item_ids` and `scores` out."""
        users, read, seen = zip(*map(self._known, asked), strict=True)
        width = max(1, *map(len, read))
        histories = np.zeros((len(asked), width), np.int64)
        for line, rows in zip(histories, read, strict=True):
            line[width - len(rows) :] = rows
        owners = np.repeat(np.arange(len(asked)), [len(rows) for rows in seen])
        ks = [int(one["k"]) for one in asked]
        with torch.inference_mode():
            on_device = [torch.from_numpy(array).to(self._device) for array in (np.array(users), histories)]
            vectors = self._tower(*on_device).to(self._table.dtype)
            scores = vectors @ self._table.T
            out = [torch.from_numpy(array).to(self._device) for array in (owners, np.concatenate(seen))]
            scores.index_put_(tuple(out), torch.tensor(-torch.inf, device=self._device, dtype=scores.dtype))
            values, rows = self.top(scores, max(ks))
            ids, best = self._ids[rows.cpu().numpy()], values.float().cpu().numpy()
        return [{"item_ids": ids[row, :k], "scores": best[row, :k]} for row, k in enumerate(ks)]

    def _known(self, one: Asked) -> tuple[int, list[int], Any]:
        """Return the user's row, the rows of the history that the tower reads, and the table's rows that are seen."""
        given = np.array(one.get("history", ()), dtype=np.int64)
        user = self._user_rows.get(one.get("user_id", -1), 0)
        stored = self._histories[user - 1] if user else given[:0]
        read = [row for item in given.tolist() if (row := self._item_rows.get(item))]
        if not read:
            read = [self._item_rows[item] for item in stored[-self._max_history :].tolist()]
        seen = np.concatenate([stored, given, np.array(one.get("exclude", ()), dtype=np.int64)])
        places = np.searchsorted(self._ids, seen)
        return user, read[-self._max_history :], places[self._ids[np.minimum(places, len(self._ids) - 1)] == seen]


class Batcher:
    """Answers calls together: those that come while a batch runs form the next one, and none waits for company."""

    def __init__(self, answer: Callable[[Sequence[Asked]], list[dict[str, Any]]]) -> None:
        self._answer = answer
        self._waiting: list[tuple[Asked, asyncio.Future[dict[str, Any]]]] = []
        self._thread = ThreadPoolExecutor(1)
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, asked: Asked) -> dict[str, Any]:
        """Return the answer to one call."""
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            asked = [one for one, _ in batch]
            try:
                answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, asked)
            except Exception as error:  # each caller is to hear of it
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)


def create() -> FastAPI:
    """Make the application from the environment that `rival.RivalServer` sets."""
    rival = GpuRival(Path(os.environ[CHECKPOINT]), Path(os.environ[INDEX]), os.environ[DEVICE])
    rival.recommend([{"user_id": -1, "history": [], "k": 10}])
    batcher = Batcher(rival.recommend)
    app = FastAPI(openapi_url=None)

    @app.post("/recommend")
    async def recommend(request: Request) -> Response:
        try:
            answer = await batcher(orjson.loads(await request.body()))
        except (ValueError, KeyError, TypeError) as error:
            return Response(orjson.dumps({"error": str(error)}), 422, media_type="application/json")
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app
