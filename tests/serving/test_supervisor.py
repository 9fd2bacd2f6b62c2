"""A supervised server under load: processes are killed, versions come and go, and the callers get their answers."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fuserec.client import ClientError, Recommender
from fuserec.errors import LaunchError
from fuserec.export import rollout
from fuserec.manifest import version_folders
from fuserec.serve import tritonserver
from fuserec.serve.launcher import Address, Server
from fuserec.serve.processes import model_processes, process_ids
from fuserec.serve.supervisor import Supervisor, Watch
from fuserec.traffic import Traffic
from tests.waiting import wait_until

pytestmark = pytest.mark.serving
LONG_S = 90.0


@dataclass
class Callers:
    """Threads that ask one question again and again until told to stop."""

    server: Server
    versions: list[str] = field(default_factory=list)
    errors: list[ClientError] = field(default_factory=list)
    wrong: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        with self._client() as client:
            self._right = client.recommend(user_id=5, k=5).item_ids.tolist()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _client(self) -> Recommender:
        return Recommender(f"127.0.0.1:{self.server.address.grpc_port}", timeout_ms=10_000)

    def _ask(self) -> None:
        with self._client() as client:
            while not self._stop.is_set():
                try:
                    answer = client.recommend(user_id=5, k=5)
                except ClientError as error:
                    self.errors.append(error)
                    continue
                self.versions.append(answer.model_version)
                if answer.item_ids.tolist() != self._right:
                    self.wrong.append(answer.item_ids.tolist())

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@dataclass
class Supervised:
    server: Server
    events: list[str]

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + LONG_S
        while not any(words in event for event in self.events):
            assert time.monotonic() < deadline, f"{words!r} was not said within {LONG_S:.0f} s: {self.events}"
            time.sleep(0.05)


@contextlib.contextmanager
def watched(repository: Path, folder: Path) -> Iterator[Supervised]:
    copy = Path(shutil.copytree(repository, folder / "repository"))
    stop, events = threading.Event(), []
    with Server(copy, address=Address.free()) as server:
        supervisor = Supervisor(server, Watch(tick_s=0.1, canary_s=1.0, leave_s=3.0), events.append)
        thread = threading.Thread(target=supervisor.run, args=(stop,))
        thread.start()
        try:
            yield Supervised(server, events)
        finally:
            stop.set()
            thread.join()


@pytest.fixture(scope="module")
def kept(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    with watched(repository, tmp_path_factory.mktemp("kept")) as supervised:
        yield supervised


@pytest.fixture
def supervised(kept: Supervised) -> Iterator[Supervised]:
    """A server with its first version alone, which has yet to say anything; it is left so."""
    kept.events.clear()
    yield kept
    server = kept.server
    for model in server.manifest.models:
        for version in set(version_folders(server.repository / model)) - {1}:
            shutil.rmtree(server.repository / model / str(version))
    Traffic().write(server.repository)

    def is_whole() -> bool:
        with contextlib.suppress(LaunchError):  # what is wrong is the supervisor's to mend
            server.canary()
            return server.manifest.version == 1
        return False

    wait_until(is_whole, "the first version")


def test_swap_under_load_loses_nothing(supervised: Supervised, repository: Path) -> None:
    server = supervised.server
    callers = Callers(server)
    try:
        assert rollout.publish(repository, server.repository, force=True) == 2
        supervised.wait_for("version 2 is served")
        wait_until(lambda: callers.versions[-1:] == ["2"], "an answer from version 2")
        assert rollout.roll_back(server.repository) == 1
        supervised.wait_for("version 1 is served")
        wait_until(lambda: callers.versions[-1:] == ["1"], "an answer from version 1")
    finally:
        callers.stop()
    assert not callers.errors, f"calls were lost: {callers.errors[:3]}"
    assert not callers.wrong, f"answers were wrong: {callers.wrong[:3]}"


def test_damaged_version_is_not_served(supervised: Supervised, repository: Path) -> None:
    server = supervised.server
    for model in server.manifest.models:
        shutil.copytree(repository / model / "1", server.repository / model / "2")
    engine = server.repository / "recommend" / "2" / "engines" / "user_tower.cpu.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    supervised.wait_for("version 1 goes on")
    with Recommender(f"127.0.0.1:{server.address.grpc_port}", timeout_ms=10_000) as client:
        assert client.recommend(user_id=5).model_version == "1"
    time.sleep(1.0)
    assert sum("goes on" in event for event in supervised.events) == 1, "it was said more than once"


def test_killed_model_processes_come_back_each_time(supervised: Supervised) -> None:
    """One of them, then all: the server opens a model anew only if it sees that something has changed."""
    server = supervised.server
    callers = Callers(server)

    def is_whole() -> bool:  # not while those of before still finish what they began
        return model_processes(server.pid)["recommend"] == server.settings.instances

    try:
        for victims in (slice(1), slice(None)):
            wait_until(is_whole, "as many processes as there should be")
            supervised.events.clear()
            for pid in process_ids(server.pid, "recommend")[victims]:
                os.kill(pid, signal.SIGKILL)
            supervised.wait_for("'recommend' is whole again")
            wait_until(is_whole, "as many processes as there should be")
            enough = len(callers.versions) + 20
            wait_until(functools.partial(lambda enough: len(callers.versions) > enough, enough), "answers")
    finally:
        callers.stop()
    assert not callers.wrong, f"answers were wrong: {callers.wrong[:3]}"


def test_killed_server_comes_back(supervised: Supervised) -> None:
    server = supervised.server
    before = server.pid
    os.kill(before, signal.SIGKILL)
    supervised.wait_for("the server answers again")
    assert server.pid != before
    assert model_processes(server.pid)["recommend"] == server.settings.instances
    with Recommender(f"127.0.0.1:{server.address.grpc_port}", timeout_ms=10_000) as client:
        assert len(client.recommend(user_id=5, k=5)) == 5


def test_damaged_repository_is_waited_for(supervised: Supervised) -> None:
    server = supervised.server
    engine = server.repository / "recommend" / "1" / "engines" / "user_tower.cpu.onnx"
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1] + b"!")
    os.kill(server.pid, signal.SIGKILL)
    supervised.wait_for("nothing is served until the repository is mended")
    time.sleep(2.0)
    complaints = [event for event in supervised.events if "until the repository is mended" in event]
    assert len(complaints) == 1 and engine.name in complaints[0], f"expected one that names the file: {complaints}"
    engine.write_bytes(whole)
    supervised.wait_for("the server answers again")
    with Recommender(f"127.0.0.1:{server.address.grpc_port}", timeout_ms=10_000) as client:
        assert len(client.recommend(user_id=5, k=5)) == 5


def test_frozen_server_is_started_anew(supervised: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    # It does not hear that it is to end, and is killed after so long.
    monkeypatch.setattr(tritonserver, "STOP_TIMEOUT_S", 1.0)
    before = supervised.server.pid
    os.kill(before, signal.SIGSTOP)
    supervised.wait_for("the server answers again")
    assert supervised.server.pid != before
