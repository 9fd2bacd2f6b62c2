"""The real server on a GPU's kernels, interpreted, and on a GPU that is lost; a real one is not needed."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.client import Query as Call
from fuserec.client import Recommender, Rules
from fuserec.contract import NO_ID
from fuserec.errors import ServerUnavailable
from fuserec.manifest import FileRecord, Manifest
from fuserec.serve.launcher import Address, Server
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.settings import ServingConfig
from fuserec.serve.supervisor import Supervisor, Watch
from fuserec.serve.users import NO_IDS
from tests.waiting import wait_until

from .scraping import scrape

pytestmark = pytest.mark.serving

INTERPRETED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from fuserec.serve.device import Device
from fuserec.serve.triton_models import RecommendModel

class TritonPythonModel(RecommendModel):
    def choose_device(self):
        return Device("interpret", "a test")
"""

# Fails as torch does when the file appears that it is told of, and from then on: CUDA's errors stay.
LOST = """
import os
from fuserec.serve.triton_models import RecommendModel

class TritonPythonModel(RecommendModel):
    def open(self, bundle):
        super().open(bundle)
        self.is_lost = False
        for name in ("search", "search_kept", "search_plain"):
            setattr(self.pipeline._recall, name, self.losing(getattr(self.pipeline._recall, name)))

    def losing(self, search):
        def call(*arguments):
            if os.path.exists({flag!r}):
                os.unlink({flag!r})
                self.is_lost = True
            if self.is_lost:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return search(*arguments)
        return call
"""


def with_model(repository: Path, folder: Path, code: str) -> Path:
    """Return a copy of a repository in which another `recommend` was published."""
    copy = Path(shutil.copytree(repository, folder / "repository"))
    bundle = copy / "recommend" / "1"
    manifest = Manifest.read(bundle)
    path = copy / manifest.path_of("recommend/model.py")
    path.write_text(code)
    manifest.files["recommend/model.py"] = FileRecord.of(path)
    manifest.write(bundle)
    return copy


def client(server: Server, **options: float) -> Recommender:
    return Recommender(f"127.0.0.1:{server.address.grpc_port}", **{"timeout_ms": 60_000, **options})  # type: ignore[arg-type]


def test_launcher_tells_where_the_models_compute(server: Server) -> None:
    assert server.device.kind in ("cpu", "cuda")
    assert f"device: {server.device}" in server.log.read_text()

    def told() -> bool:
        labels = {("device", server.device.kind), ("model", "recommend"), ("version", "1")}
        return bool(scrape(server).series.get(("fuserec_device", frozenset(labels))) == 1.0)

    wait_until(told, "the metric")


def test_served_by_the_kernels_of_a_gpu(repository: Path, bundle: Path, tmp_path: Path) -> None:
    copy = with_model(repository, tmp_path, INTERPRETED)
    rng = np.random.default_rng(0)
    items = pl.read_parquet(bundle / "items.parquet")["item_id"].to_numpy()
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].head(6).to_list()
    queries = [Query(user, NO_IDS, NO_IDS, 3 + row) for row, user in enumerate(users)]
    queries += [
        Query(NO_ID, rng.choice(items, 12), rng.choice(items, 40), 20),
        Query(users[0], NO_IDS, rng.choice(items, 10), 5, rules=Rules(boosts={"Even": 0.3}, caps={"*": 2})),
        Query(users[1], NO_IDS, NO_IDS, 7, allow=rng.choice(items, 30)),
        Query(10**9, NO_IDS, NO_IDS, 4),
    ]
    calls = [
        Call(
            user_id=None if query.user_id == NO_ID else query.user_id,
            history=query.history.tolist(),
            exclude=query.exclude.tolist(),
            k=query.k,
            allow=query.allow.tolist(),
            rules=query.rules,
        )
        for query in queries
    ]
    expected = Pipeline.open(bundle).recommend(queries)
    with Server(copy, address=Address.free(), settings=ServingConfig(instances=1)) as server, client(server) as ours:
        assert "device: interpret (a test)" in server.log.read_text()
        for came in (ours.recommend_many(calls), [ours.recommend_many([call])[0] for call in calls]):
            for served, own in zip(came, expected, strict=True):
                np.testing.assert_array_equal(served.item_ids, own.item_ids)
                np.testing.assert_allclose(served.scores, own.scores, rtol=1e-5, atol=1e-6)


@pytest.fixture
def losing(repository: Path, tmp_path: Path) -> Iterator[tuple[Server, Path, list[str]]]:
    """A supervised server whose GPU is lost when a file appears, that file, and what the supervisor says."""
    flag = tmp_path / "lose the device"
    copy = with_model(repository, tmp_path, LOST.format(flag=str(flag)))
    stop, events = threading.Event(), list[str]()
    with Server(copy, address=Address.free(), settings=ServingConfig(instances=2)) as server:
        supervisor = Supervisor(server, Watch(tick_s=0.1, first_backoff_s=0.1), events.append)
        thread = threading.Thread(target=supervisor.run, args=(stop,))
        thread.start()
        try:
            yield server, flag, events
        finally:
            stop.set()
            thread.join()


def test_lost_device(losing: tuple[Server, Path, list[str]]) -> None:
    """The call gets a typed error that says so, the process ends, and the supervisor opens the model anew."""
    server, flag, events = losing
    with client(server, retries=0) as once:
        before = once.recommend(user_id=5, k=5)
        flag.touch()
        with pytest.raises(ServerUnavailable, match="the GPU is lost to this process: CUDA error: an illegal memory"):
            once.recommend(user_id=5, k=5)
        assert not flag.exists()
        wait_until(lambda: any("whole again" in event for event in events), "the model to be opened anew", 60.0)
        assert events[0] == "a process of 'recommend' has died; opening the model again"
        after = once.recommend(user_id=5, k=5)
    np.testing.assert_array_equal(after.item_ids, before.item_ids)
    assert "which ends to be started again" in server.log.read_text()
