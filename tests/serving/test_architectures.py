"""Every architecture goes the whole road: exported, served by the real server, and called, it is what torch says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from fuserec.client import Recommender
from fuserec.export import ExportConfig, export_checkpoint
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.registry import ARCHITECTURES
from fuserec.models.retriever import Retriever
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig

pytestmark = pytest.mark.serving
TraceOnce = Callable[[], AbstractContextManager[None]]
K = 10
OTHERS = [
    name
    for name, architecture in ARCHITECTURES.items()
    if name != "two-tower"  # that one has the rest of this folder
    and not name.startswith("ranker-")  # see test_ranking
]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_served_is_what_torch_says(
    name: str, untrained: Callable[[str, Path], None], trace_once: TraceOnce, tmp_path: Path
) -> None:
    untrained(name, tmp_path / "checkpoint")
    with trace_once():
        manifest = export_checkpoint(
            tmp_path / "checkpoint", tmp_path / "repository", ExportConfig(precision="fp32", targets=("sm89",))
        )
    assert manifest.architecture == name
    assert set(manifest.parts["user_tower"].engines) == {"cpu", "sm89"}
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    module, ids = checkpoint.module(), checkpoint.items["item_id"].to_numpy()
    assert isinstance(module, Retriever)
    known = checkpoint.users.head(12).rows()
    calls = [(user, history) for user, history in known] + [(None, history[:3]) for _, history in known[:4]]
    address = Address.free()
    with (
        Server(tmp_path / "repository", address=address, settings=ServingConfig(instances=1)),
        Recommender(f"grpc://127.0.0.1:{address.grpc_port}", timeout_ms=20_000) as recommender,
    ):
        served = [
            recommender.recommend(user_id=user, k=K) if user else recommender.recommend(history=history, k=K)
            for user, history in calls
        ]
        if checkpoint.tokenizer is not None:
            by_text = recommender.recommend(text="item 7", k=K)
            assert by_text.item_ids[0] == ids[7], "the item of that title is not the first"
            assert not by_text.fallback
        user, item = known[0][0], int(served[0].item_ids[0])
        explanation = recommender.explain(user_id=user, item_id=item)
        assert explanation.score == pytest.approx(float(served[0].scores[0]), abs=1e-4)
        assert explanation.item_ids.tolist() == known[0][1][-len(explanation) :]
        alone = recommender.recommend(user_id=user, history=known[0][1][:3], k=len(ids), history_only=True)
        assert set(known[0][1][3:]) - set(known[0][1][:3]) <= set(alone.item_ids.tolist()), "the stored is excluded"
    for place, ((user, history), answer) in enumerate(zip(calls, served, strict=True)):
        rows = np.searchsorted(ids, history) + 1
        line = 0 if user is None else 1 + checkpoint.users["user_id"].to_list().index(user)
        with torch.no_grad():
            vector = module.user_tower(
                torch.tensor([line]), torch.from_numpy(rows[None, -checkpoint.arguments["max_history"] :])
            )
            scores = (vector @ module.item_vectors().T)[0].numpy()
        scores[rows - 1] = -np.inf
        want = np.sort(scores)[::-1][:K]
        np.testing.assert_allclose(answer.scores, want, atol=1e-4, err_msg=f"scores of call {place}")
        np.testing.assert_allclose(scores[np.searchsorted(ids, answer.item_ids)], want, atol=1e-4, err_msg=str(place))
