"""The main job from nothing: real data, a trained checkpoint, quantized engines, the real server, and its answers."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import polars as pl
from rich.rule import Rule
from rich.text import Text

from fuserec import display
from fuserec.catalogue import Catalogue
from fuserec.client import Recommendations, Recommender
from fuserec.contract import USER_TOWER
from fuserec.errors import CheckpointError
from fuserec.export import AHEAD_OF_TIME, TARGETS, ExportConfig, export_checkpoint
from fuserec.manifest import Manifest
from fuserec.models.checkpoint import Checkpoint
from fuserec.serve.launcher import Address, Server
from fuserec.terminal import out, print_table, printable, sign
from fuserec.train.data import read_folder
from fuserec.train.movielens import write_movielens_100k
from fuserec.train.run import Run
from fuserec.train.two_tower import TwoTowerRecipe, train_two_tower

USER = 42
CALLS = 300
K = 10


def run_demo(folder: Path) -> None:
    """Train, export, serve and query on MovieLens-100K; leaves its artefacts in `folder` and no process.

    Data and checkpoint of an earlier run are used again when they are what this run would make.
    """
    start = time.perf_counter()
    data, checkpoint, repository = folder / "movielens-100k", folder / "checkpoint", folder / "repository"
    _title(1, "data: MovieLens-100K, 100,000 ratings with their times")
    with display.steps() as on_step:
        write_movielens_100k(data, progress=on_step)
    _title(2, "train: contrastive two-tower, InfoNCE over in-batch negatives")
    display.training(_train(data, checkpoint).metrics, checkpoint)
    _title(3, "export: for each target the fastest engine that ranks as float32 does, and an item index")
    with display.steps() as steps:
        config = ExportConfig(targets=AHEAD_OF_TIME)
        manifest = export_checkpoint(checkpoint, repository, config, on_step=steps, on_build=steps.advance)
    _engines(manifest)
    _title(4, "serve: NVIDIA Triton Inference Server on loopback")
    server = Server(repository, address=Address.free())
    with display.steps() as on_step:
        on_step("starting the server and waiting for a first recommendation")
        server.start()
    try:
        address = server.address
        out.print(f"gRPC {address.host}:{address.grpc_port}, HTTP http://{address.host}:{address.http_port}")
        _title(5, "recommend")
        catalogue = Catalogue.open(repository)
        users = pl.read_parquet(checkpoint / "users.parquet")
        histories = dict(zip(users["user_id"].to_list(), users["history"].to_list(), strict=True))
        with Recommender(f"grpc://{address.host}:{address.grpc_port}", timeout_ms=5_000) as recommender:
            _known_user(recommender, catalogue, histories[USER])
            _unknown_user(recommender, catalogue)
            _latency(recommender, list(histories))
    finally:
        server.stop()
    out.print(Rule(style="dim", characters=sign("─", "-")))
    out.print(f"done in {time.perf_counter() - start:.0f} s; the server has been stopped. The artefacts:")
    out.print(f"  {data}\n  {checkpoint}\n  {repository}")
    out.print("next, with .venv/bin on your PATH:")
    out.print(f"  fuserec inspect {repository}")
    out.print(f"  fuserec serve {repository}")
    out.print(f"  fuserec recommend --user {USER} -k 10            (in another terminal)")


def _train(data: Path, folder: Path) -> Checkpoint:
    """Return the checkpoint in `folder` when this recipe made it, else train it."""
    recipe = TwoTowerRecipe()
    try:
        checkpoint = Checkpoint.load(folder)
        if checkpoint.metrics.get("recipe") == dataclasses.asdict(recipe):
            out.print(f"using the checkpoint of an earlier run; remove {folder} to train again")
            return checkpoint
    except CheckpointError:
        pass  # none yet, or not one that can be used: train it
    checkpoint = train_two_tower(read_folder(data), recipe, Run())
    checkpoint.save(folder)
    return checkpoint


def _title(number: int, text: str) -> None:
    out.print(Rule(Text(f"{number}/5 {text}", "bold"), align="left", style="dim", characters=sign("─", "-")))


def _engines(manifest: Manifest) -> None:
    rows = []
    tower = manifest.parts[USER_TOWER]
    for target, engine in tower.engines.items():
        name, runtime = f"{target} ({TARGETS[target].what})", f"{engine.runtime} {engine.runtime_version}"
        rows.append((name, runtime, engine.precision, f"{engine.quality['overlap']:.1%}"))
    print_table(("target", "runtime", "precision", "overlap of the ten best"), rows)
    out.print("what every precision costs: quality.html in the bundle")


def _known_user(recommender: Recommender, catalogue: Catalogue, history: list[int]) -> None:
    answer = recommender.recommend(user_id=USER, k=K)
    rows = [
        (catalogue.title(seen), catalogue.title(item_id), f"{score:.4f}")
        for seen, (item_id, score) in zip(reversed(history[-K:]), answer, strict=False)
    ]
    print_table((f"user {USER} last watched", "is recommended", "score"), rows)


def _unknown_user(recommender: Recommender, catalogue: Catalogue) -> None:
    watched = [50, 181, 172]
    answer = recommender.recommend(history=watched, k=5)
    out.print("somebody unknown who watched " + ", ".join(catalogue.title(item_id) for item_id in watched) + ":")
    _list(answer, catalogue)
    answer = recommender.recommend(k=5)
    out.print(f"somebody of whom nothing is known (fallback = {answer.fallback}: the most popular):")
    _list(answer, catalogue)


def _list(answer: Recommendations, catalogue: Catalogue) -> None:
    for item_id, score in answer:
        out.print(f"  {score:.4f}  {printable(catalogue.title(item_id))}")


def _latency(recommender: Recommender, user_ids: list[int]) -> None:
    chosen = np.random.default_rng(0).choice(user_ids, CALLS)
    took_ms = []
    for user_id in chosen.tolist():
        start = time.perf_counter()
        recommender.recommend(user_id=user_id, k=K)
        took_ms.append((time.perf_counter() - start) * 1e3)
    p50, p99 = np.percentile(took_ms, (50, 99))
    out.print(f"latency of {CALLS} calls over gRPC, one after the other: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
