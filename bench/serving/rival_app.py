"""What a user would write in an afternoon: FastAPI in front of the trained torch module and a flat faiss index.

Nothing in it is slower than it has to be: JSON is read and written by orjson, nothing is validated twice, the module
runs under inference mode, the stored histories are arrays in memory. uvicorn starts `create`, see `rival.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from bench.serving.rival_settings import CHECKPOINT, IN_POOL, INDEX, THREADS
from fuserec.kernels import ItemIndex
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever


class Rival:
    """Answers as the pipeline does: what a user has seen is not shown to them again.

    Args:
        checkpoint: Folder of the trained model, whose item ids rise with its rows.
        index: The vectors that the pipeline searches.
    """

    def __init__(self, checkpoint: Path, index: Path) -> None:
        loaded = Checkpoint.load(checkpoint)
        module = loaded.module()
        if not isinstance(module, Retriever):
            raise SystemExit(f"{checkpoint} holds a {loaded.architecture}, which finds no items; expected a retriever")
        self._tower, self._max_history = module.user_tower, module.config.max_history
        self._item_rows = {item: row for row, item in enumerate(loaded.items["item_id"].to_list(), start=1)}
        self._user_rows = {user: row for row, user in enumerate(loaded.users["user_id"].to_list(), start=1)}
        self._histories = [np.array(history, dtype=np.int64) for history in loaded.users["history"].to_list()]
        popular = loaded.items.sort(["count", "item_id"], descending=[True, False])
        self._popular = popular["item_id"].to_numpy()
        self._shares = (popular["count"] / max(popular["count"].sum(), 1)).to_numpy().astype(np.float32)
        items = ItemIndex.load(index)
        self._ids = items.ids
        self._index = faiss.IndexFlatIP(items.dim)
        self._index.add(np.ascontiguousarray(items.embeddings))

    def recommend(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a call: `user_id`, `history`, `exclude` and `k` in; `item_ids`, `scores` and `fallback` out."""
        k = int(asked["k"])
        given = np.array(asked.get("history", ()), dtype=np.int64)
        user = self._user_rows.get(asked.get("user_id", -1), 0)
        stored = self._histories[user - 1] if user else given[:0]
        rows = [row for item in given.tolist() if (row := self._item_rows.get(item))]
        if not rows:
            rows = [self._item_rows[item] for item in stored[-self._max_history :].tolist()]
        seen = np.concatenate([stored, given, np.array(asked.get("exclude", ()), dtype=np.int64)])
        if not user and not rows:
            left = ~np.isin(self._popular, seen)
            return self._answer(self._popular[left][:k], self._shares[left][:k], fallback=True)
        with torch.inference_mode():
            history = torch.tensor([rows[-self._max_history :] or [0]])
            vector = self._tower(torch.tensor([user]), history).numpy()
        scores, found = self._index.search(vector, min(k + len(np.unique(seen)), self._index.ntotal))
        ids = self._ids[found[0]]
        left = ~np.isin(ids, seen)
        return self._answer(ids[left][:k], scores[0][left][:k], fallback=False)

    @staticmethod
    def _answer(ids: Any, scores: Any, *, fallback: bool) -> dict[str, Any]:
        return {"item_ids": ids, "scores": scores, "fallback": fallback}


def create() -> FastAPI:
    """Make the application from the environment that `rival.RivalServer` sets."""
    torch.set_num_threads(int(os.environ[THREADS]))
    faiss.omp_set_num_threads(int(os.environ[THREADS]))
    rival = Rival(Path(os.environ[CHECKPOINT]), Path(os.environ[INDEX]))
    in_pool = os.environ[IN_POOL] == "1"
    app = FastAPI(openapi_url=None)

    @app.post("/recommend")
    async def recommend(request: Request) -> Response:
        try:
            asked = orjson.loads(await request.body())
            answer = await run_in_threadpool(rival.recommend, asked) if in_pool else rival.recommend(asked)
        except (ValueError, KeyError, TypeError) as error:
            return Response(orjson.dumps({"error": str(error)}), 422, media_type="application/json")
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return app
