"""The bench of a served GPU: its rival answers as the pipeline does, and it runs through both servers on a CPU."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from bench.serving import on_device
from bench.serving.measure import Plan
from bench.serving.on_device import Trial, measure
from bench.serving.repositories import large_repository, small_repository
from bench.serving.rival_gpu_app import Batcher, GpuRival, plain_top, two_stage_top
from fuserec.contract import NO_ID, RECOMMEND
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest, bundle_folder
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.users import NO_IDS

N_ITEMS = 2_000


@pytest.fixture(scope="module")
def folder(
    checkpoint_folder: Path,
    trace_once: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What `prepare` leaves, of the small checkpoint of the tests."""
    folder = tmp_path_factory.mktemp("on-device")
    (folder / "checkpoint").symlink_to(checkpoint_folder)
    with trace_once():
        small_repository(checkpoint_folder, folder / "small")
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return Trial(folder).bundle(N_ITEMS)


def test_front_door_alone_is_published(bundle: Path) -> None:
    """Each model beside it would have a table of its own on the device."""
    manifest = Manifest.read(bundle)
    manifest.verify(bundle.parents[1])
    assert (manifest.models, manifest.n_items) == ([RECOMMEND], N_ITEMS)


@pytest.mark.parametrize("n", [7, 256 * 10, 256 * 12 + 5, 10_007])
@pytest.mark.parametrize("k", [1, 7])
def test_two_ways_to_the_top(n: int, k: int) -> None:
    scores = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    scores[1, n // 2 :] = -torch.inf
    plain, staged = plain_top(scores, k), two_stage_top(scores, k)
    assert torch.equal(plain[0], staged[0])
    assert torch.equal(scores.gather(1, staged[1]), staged[0]), "the rows are not those of the scores"


def test_rival_answers_as_the_pipeline(folder: Path, bundle: Path) -> None:
    rng = np.random.default_rng(0)
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].to_list()
    items = pl.read_parquet(bundle / "items.parquet")["item_id"].to_numpy()
    queries = [Query(user, NO_IDS, NO_IDS, 10) for user in users[:10]]
    queries += [Query(NO_ID, rng.choice(items[:300], 12), rng.choice(items, 5), 3 + row) for row in range(5)]
    queries += [Query(users[3], rng.choice(items[:300], 30), NO_IDS, 20)]
    asked: list[dict[str, Any]] = [
        {"user_id": query.user_id, "history": query.history, "exclude": query.exclude, "k": query.k}
        for query in queries
    ]
    rival = GpuRival(folder / "checkpoint", bundle / "index.safetensors", "cpu")
    expected = Pipeline.open(bundle).recommend(queries)
    for answers in (rival.recommend(asked), [rival.recommend([one])[0] for one in asked]):
        for answer, own in zip(answers, expected, strict=True):
            np.testing.assert_array_equal(answer["item_ids"], own.item_ids)
            np.testing.assert_allclose(answer["scores"], own.scores, atol=1e-4)


def test_calls_that_come_meanwhile_share_a_batch() -> None:
    sizes: list[int] = []
    first, go_on = threading.Event(), threading.Event()

    def answer(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        sizes.append(len(asked))
        first.set()
        assert go_on.wait(10)
        return [{"echo": one["n"]} for one in asked]

    async def ask() -> list[dict[str, Any]]:
        batcher = Batcher(answer)
        tasks = [asyncio.create_task(batcher({"n": 0}))]
        while not first.is_set():
            await asyncio.sleep(0.001)
        tasks += [asyncio.create_task(batcher({"n": n})) for n in range(1, 101)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*tasks)

    assert [answer["echo"] for answer in asyncio.run(ask())] == list(range(101))
    assert sizes == [1, 64, 36]


def test_each_caller_hears_of_an_error() -> None:
    def fail(asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        raise KeyError("k")

    async def ask() -> list[Any]:
        batcher = Batcher(fail)
        return list(await asyncio.gather(batcher({}), batcher({}), return_exceptions=True))

    assert [type(error) for error in asyncio.run(ask())] == [KeyError, KeyError]


def test_an_index_that_is_there_is_taken(folder: Path, tmp_path: Path) -> None:
    small = bundle_folder(folder / "small")
    trained = ItemIndex.load(small / "index.safetensors")
    rng = np.random.default_rng(0)
    ids = np.concatenate([trained.ids, trained.ids[-1] + 1 + np.arange(500)])
    index = ItemIndex.build(rng.standard_normal((len(ids), trained.dim), dtype=np.float32), ids)
    index.save(tmp_path / "index.safetensors")
    bundle = large_repository(
        small, tmp_path / "repository", len(ids), models=[RECOMMEND], index=tmp_path / "index.safetensors"
    )
    manifest = Manifest.read(bundle)
    manifest.verify(bundle.parents[1])
    assert (bundle / "index.safetensors").samefile(tmp_path / "index.safetensors")
    [answer] = Pipeline.open(bundle).recommend([Query(5, NO_IDS, NO_IDS, 400)])
    assert set(answer.item_ids.tolist()) & set(ids[-500:].tolist())
    ItemIndex.build(np.ones((600, trained.dim + 1), np.float32)).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"^invalid index=.*: must have {trained.dim} columns"):
        large_repository(small, tmp_path / "other", 600, index=tmp_path / "other.safetensors")


def test_packages_that_only_pythonpath_brings_are_no_good(tmp_path: Path) -> None:
    """The processes of the models would take the numpy that lies elsewhere."""
    code = "from bench.serving.on_device import check_environment as check; check()"
    root = Path(on_device.__file__).parents[2]
    for path, status in ((str(root), 0), (f"{root}{os.pathsep}{tmp_path / 'site'}", 1)):
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "onnxruntime.py").write_text("")
        (tmp_path / "site" / "numba.py").write_text("raise ImportError('of PYTHONPATH')")
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        assert status == 0 or "bench/serving/host.sh WHEELS VENV" in done.stderr


@pytest.mark.serving
def test_a_run_through_both_servers(folder: Path) -> None:
    plan = Plan(concurrencies=(4,), shares=(), seconds=0.3, rounds=1, warm_s=0.1)
    rows = list(measure(Trial(folder, "cpu", (N_ITEMS,), plan, workers=(1,))))
    assert [row["contender"] for row in rows] == ["fuserec", "rival on cpu 1x2"] * 2
    assert all(row["answered"] > 0 and row["errors"] == 0 for row in rows[:2])
    assert [row["saturated_qps"] for row in rows] == [None, None, rows[0]["qps"], rows[1]["qps"]]
    assert rows[0]["in_common"] == 1.0 and {row["items"] for row in rows} == {N_ITEMS}
    assert len(list(on_device.described(rows))) == 4
    assert len({tuple(row) for row in rows}) == 1, "a CSV file has the same columns in all rows"
