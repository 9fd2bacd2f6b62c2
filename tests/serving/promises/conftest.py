"""Servers that the tests may hurt: one that is watched and brought back, and one with a short queue."""

from __future__ import annotations

import concurrent.futures
import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bench._raw import Reply
from fuserec.manifest import FileRecord, Manifest
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig
from fuserec.serve.supervisor import Supervisor, Watch
from tests.serving.promises.raw import K_TENSOR, REFUSED, Tensor, items, message, metric, send_grpc
from tests.waiting import wait_until

LONG_S = 120.0
QUEUE_SIZE = 8
QUEUE_TIMEOUT_MS = 2_000.0


@dataclass
class Supervised:
    """A server under a supervisor, and what that has said."""

    server: Server
    events: list[str]
    replies: dict[str, Reply] = field(default_factory=dict)

    def suffer(self, name: str, send: Callable[[Server], Reply]) -> Reply:
        """Send something once, however often it is asked for; return the reply once all is as it was before."""
        if name not in self.replies:
            before = items(self.server)
            self.events.clear()
            self.replies[name] = reply = send(self.server)
            if reply.status not in REFUSED:
                wait_until(lambda: any("again after" in event for event in self.events), f"recovery: {name}", LONG_S)
            wait_until(lambda: send_grpc(self.server, message()).is_ok, f"an answer after {name}")
            assert items(self.server) == before, f"other items after {name}"
        return self.replies[name]


@pytest.fixture(scope="session")
def supervised(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("supervised") / "repository"))
    stop, events = threading.Event(), []
    with Server(copy, address=Address.free(), settings=ServingConfig(instances=1)) as server:
        supervisor = Supervisor(server, Watch(tick_s=0.1, canary_s=1.0, first_backoff_s=0.1), events.append)
        thread = threading.Thread(target=supervisor.run, args=(stop,))
        thread.start()
        try:
            yield Supervised(server, events)
        finally:
            stop.set()
            thread.join()


# Takes as many milliseconds as a user id is beyond 10^9. (To freeze its process instead ends server 2.51 within 2 s.)
SLOW_MODEL = """
import time
from fuserec.serve.triton_models import RecommendModel

class TritonPythonModel(RecommendModel):
    def read(self, inputs):
        time.sleep(max(0, inputs["user_id"].as_numpy().max() - 10**9) / 1e3)
        return super().read(inputs)
"""


@dataclass
class Busy:
    """A server with room for `QUEUE_SIZE` requests, whose model takes as long as it is told to."""

    server: Server

    @contextlib.contextmanager
    def at_work(self, seconds: float = 1.5) -> Iterator[int]:
        """Have each process of `recommend` at a request of at least so long, and one more that waits.

        Yields how many requests it took: all are executed but the last one, and that one too if it need not wait for
        longer than it may.
        """
        user: Tensor = ("user_id", "INT64", [1, 1], np.int64(10**9 + 1e3 * seconds).tobytes())
        processes = self.server.settings.instances
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            slow, quick = [], []
            while not (quick and not quick[-1].done() and self.waiting() == 1):
                assert len(slow) < 6, f"no request waits behind {len(slow)} slow ones"
                slow.append(pool.submit(send_grpc, self.server, message(user, K_TENSOR)))
                time.sleep(0.1)  # or two of them might share a process
                if len(slow) >= processes:
                    quick.append(pool.submit(send_grpc, self.server, message()))
                    time.sleep(0.1)
            yield len(slow) + len(quick)
            assert not any(each.done() for each in slow), "a process was free again before the test was done with it"
            assert all(each.result().is_ok for each in slow)
            assert quick[-1].result().status in ("OK", "UNAVAILABLE"), quick[-1].result()
            wait_until(lambda: self.waiting() == 0, "an empty queue")

    def waiting(self) -> float:
        return metric(self.server, "nv_inference_pending_request_count", model="recommend")

    def failed(self, reason: str) -> float:
        return metric(self.server, "nv_inference_request_failure", model="recommend", reason=reason)


@pytest.fixture(scope="module")
def busy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    settings = ServingConfig(queue_size=QUEUE_SIZE, queue_timeout_ms=QUEUE_TIMEOUT_MS)
    with slow_server(repository, tmp_path_factory.mktemp("busy"), settings) as server:
        yield Busy(server)


@pytest.fixture
def patient(repository: Path, tmp_path: Path) -> Iterator[Busy]:
    """A server in whose queue a request may wait for as long as a loaded machine takes to test it."""
    with slow_server(repository, tmp_path, ServingConfig(queue_timeout_ms=60_000)) as server:
        yield Busy(server)


@contextlib.contextmanager
def slow_server(repository: Path, folder: Path, settings: ServingConfig) -> Iterator[Server]:
    copy = Path(shutil.copytree(repository, folder / "repository"))
    replace(copy, 1, "recommend/model.py", SLOW_MODEL.encode())
    with Server(copy, address=Address.free(), settings=settings) as server:
        yield server


def replace(repository: Path, version: int, name: str, content: bytes) -> None:
    """Put another file in the place of one, as if it had been published."""
    bundle = repository / "recommend" / str(version)
    manifest = Manifest.read(bundle)
    path = repository / manifest.path_of(name)
    path.write_bytes(content)
    manifest.files[name] = FileRecord.of(path)
    manifest.write(bundle)
