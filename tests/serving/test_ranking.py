"""Rankers go the whole road: exported alone or with a retriever, served, and called, they say what torch says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.client import ModelNotFound, Recommender
from fuserec.contract import NO_SCORE
from fuserec.errors import ExportError
from fuserec.export import ExportConfig, export_checkpoint
from fuserec.export.sources import load_sources
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranking_model import RankingModel
from fuserec.serve.launcher import Address, Server
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.users import NO_IDS
from tests.serving.promises.raw import document, json_outputs, post

Write = Callable[[str, Path], None]
TraceOnce = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module", params=["ranker-mlp", "ranker-attention", "ranker-dcn", "ranker-text"])
def ranker(request: pytest.FixtureRequest, untrained: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    untrained(request.param, folder)
    return folder


def scored(folder: Path, user: int, history: list[int], candidates: list[int]) -> np.ndarray:
    """Return what the trained module says: (C, 2)."""
    checkpoint = Checkpoint.load(folder)
    module = checkpoint.module()
    assert isinstance(module, RankingModel)
    ids = checkpoint.items["item_id"].to_numpy()
    line = checkpoint.users["user_id"].to_list().index(user) + 1
    rows = torch.from_numpy(np.searchsorted(ids, history[-module.config.max_history :]) + 1)
    wanted = torch.from_numpy(np.searchsorted(ids, candidates) + 1)
    with torch.inference_mode():
        return module.rank_tower(torch.tensor([line]), rows[None], wanted[None])[0].numpy()


@pytest.mark.serving
def test_a_ranker_alone_is_served(ranker: Path, trace_once: TraceOnce, tmp_path: Path) -> None:
    with trace_once():
        manifest = export_checkpoint(ranker, tmp_path / "repository", ExportConfig("fp32", ("sm89",)))
    assert manifest.models == ["rank"] and manifest.heads == ["click"]
    assert set(manifest.parts["ranker"].engines) == {"cpu", "sm89"}
    assert not (tmp_path / "repository" / "recommend").exists()
    checkpoint = Checkpoint.load(ranker)
    user, history = checkpoint.users.row(3)
    candidates = checkpoint.items["item_id"].sample(40, seed=1).to_list()
    address = Address.free()
    with (
        Server(tmp_path / "repository", address=address) as server,
        Recommender(f"grpc://127.0.0.1:{address.grpc_port}", timeout_ms=20_000) as recommender,
    ):
        answer = recommender.rank(user_id=user, candidates=[*candidates, 1])
        given = recommender.rank(user_id=user, history=history[:4], history_only=True, candidates=candidates)
        with pytest.raises(ModelNotFound):
            recommender.recommend(user_id=user)
        fields = [
            {"name": name, "datatype": "INT64", "shape": [1, len(ids)], "data": ids}
            for name, ids in (("user_id", [user]), ("candidates", candidates))
        ]
        on_the_wire = json_outputs(post(server, document(*fields), "/v2/models/rank/infer"))
    logits = scored(ranker, user, history, candidates)[:, 0]
    assert answer.ignored == 1, "item 1 is not in the catalogue"
    assert np.isnan(answer.ratings).all(), "ratings were not trained"
    assert (on_the_wire["ratings"] == NO_SCORE).all() and np.isfinite(on_the_wire["scores"]).all()
    np.testing.assert_allclose(answer.scores, np.sort(1 / (1 + np.exp(-logits)))[::-1], atol=1e-5)
    by_id = dict(zip(candidates, (1 / (1 + np.exp(-logits))).tolist(), strict=True))
    np.testing.assert_allclose([by_id[int(item)] for item in answer.item_ids], answer.scores, atol=1e-5)
    want = np.sort(scored(ranker, user, history[:4], candidates)[:, 0])[::-1]
    np.testing.assert_allclose(given.scores, 1 / (1 + np.exp(-want)), atol=1e-5)


def test_with_a_retriever_the_order_is_the_blend(
    ranker: Path, checkpoint_folder: Path, trace_once: TraceOnce, tmp_path: Path
) -> None:
    config = ExportConfig("fp32", ranker=ranker, candidates=50)
    with trace_once():
        manifest = export_checkpoint(checkpoint_folder, tmp_path / "repository", config)
    assert manifest.models == ["recommend", "encode", "search", "explain", "rank"]
    assert manifest.rerank is not None and manifest.rerank.candidates == 50
    assert manifest.rerank.ndcg["validation_after"] >= manifest.rerank.ndcg["validation_before"]
    bundle = tmp_path / "repository" / "recommend" / "1"
    pipeline = Pipeline.open(bundle)
    plain = Pipeline.open(bundle)
    plain._candidates.reranker = None
    user, history = pl.read_parquet(bundle / "users.parquet").row(3)
    [found] = plain.recommend([Query(user, NO_IDS, NO_IDS, 60)])
    for weight in (0.0, 0.4, 1.0):
        assert pipeline._candidates.reranker is not None
        object.__setattr__(pipeline._candidates.reranker, "weight", weight)
        [answer] = pipeline.recommend([Query(user, NO_IDS, NO_IDS, 60)])
        logits = scored(ranker, user, history, found.item_ids[:50].tolist())[:, 0]
        both = [(part - part.mean()) / part.std() for part in (found.scores[:50], logits)]
        order = np.argsort(-((1 - weight) * both[0] + weight * both[1]), kind="stable")
        assert answer.item_ids[:50].tolist() == found.item_ids[:50][order].tolist(), f"weight {weight}"
        assert answer.item_ids[50:].tolist() == found.item_ids[50:].tolist(), "what the ranker has not seen moved"
        assert (np.diff(answer.scores) <= 0).all(), "scores do not descend"
        [short] = pipeline.recommend([Query(user, NO_IDS, NO_IDS, 5)])
        assert short.item_ids.tolist() == answer.item_ids[:5].tolist(), "k changes the order"


def test_a_ranker_that_was_not_trained_to_retrieve_does_not(ranker: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(ranker)
    if checkpoint.architecture == "ranker-text":  # it has no vectors at all
        with pytest.raises(ExportError, match="holds a ranker-text, which finds no items"):
            load_sources(ranker, ranker)
        return
    arguments = checkpoint.arguments | {"tasks": "click"}
    Checkpoint(checkpoint.architecture, arguments, checkpoint.items, checkpoint.users, {}, checkpoint.state).save(
        tmp_path / "click"
    )
    assert load_sources(ranker, ranker).retriever is not None
    with pytest.raises(ExportError, match="train it with --tasks next-item,click"):
        load_sources(tmp_path / "click", ranker)


def test_what_does_not_fit_together_is_refused(
    ranker: Path, checkpoint_folder: Path, untrained: Write, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="--ranker came with a two-tower"):
        load_sources(checkpoint_folder, checkpoint_folder)
    checkpoint = Checkpoint.load(checkpoint_folder)
    others = checkpoint.users.with_columns(pl.col("user_id") + 1)
    Checkpoint("two-tower", checkpoint.arguments, checkpoint.items, others, {}, checkpoint.state).save(tmp_path / "c")
    with pytest.raises(ExportError, match="230 users .* not the same ones; train both on the same data"):
        load_sources(tmp_path / "c", ranker)
