"""Promises 19 to 24 and 30: models come and go, processes die, and nothing is lost or left behind."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from bench._footprint import Footprint
from fuserec.errors import BundleError, LaunchError
from fuserec.export import rollout
from fuserec.manifest import Manifest
from fuserec.serve.launcher import Address, Server
from fuserec.serve.processes import children_of, process_ids
from fuserec.serve.settings import ServingConfig
from tests.safety.hostile import malicious_pickle
from tests.serving.promises.conftest import Busy, Supervised, replace
from tests.serving.promises.raw import items, message, outputs, send_grpc
from tests.waiting import wait_until

pytestmark = pytest.mark.serving
MB = 2**20


@pytest.fixture(scope="module")
def own(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models may be exchanged."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("own") / "repository"))
    with Server(copy, address=Address.free(), settings=ServingConfig(instances=1)) as server:
        yield server


def served_version(server: Server) -> int:
    return int(outputs(send_grpc(server, message()))["version"][0, 0])


@contextlib.contextmanager
def published(server: Server, source: Path) -> Iterator[Path]:
    """Put another version into the repository of a server; it is gone again afterwards."""
    version = rollout.publish(source, server.repository, keep=10, force=True)
    try:
        yield server.repository / "recommend" / str(version)
    finally:
        for model in server.manifest.models:
            shutil.rmtree(server.repository / model / str(version), ignore_errors=True)


def test_promise_19_unload_drains_what_is_in_flight(patient: Busy) -> None:
    """What runs and what waits is answered; whoever comes later is told that the model is not there."""
    target = f"127.0.0.1:{patient.server.address.grpc_port}"
    with (
        patient.server.admin() as admin,
        grpc.InferenceServerClient(target) as stock,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        with patient.at_work(3.0):
            waiting = [pool.submit(send_grpc, patient.server, message()) for _ in range(4)]
            wait_until(lambda: patient.waiting() == 5, "five that wait")
            unload = pool.submit(admin.unload, "recommend")
            wait_until(lambda: not stock.is_model_ready("recommend"), "a model that takes no more")
            late = send_grpc(patient.server, message())
        unload.result()
    assert [each.result().status for each in waiting] == ["OK"] * 4
    assert late.status in ("UNAVAILABLE", "NOT_FOUND"), late
    patient.server.reload("recommend")
    assert send_grpc(patient.server, message()).is_ok


@pytest.mark.parametrize("damage", ["a byte flipped", "a model that cannot start", "a pickle for an index"])
def test_promise_20_30_what_cannot_be_served_leaves_the_old_version(
    own: Server, repository: Path, tmp_path: Path, damage: str
) -> None:
    before, marker = items(own), tmp_path / "pickle was run"
    with published(own, repository) as bundle:
        version = int(bundle.name)
        if damage == "a byte flipped":
            engine = next((bundle / "engines").glob("*.onnx"))
            content = bytearray(engine.read_bytes())
            content[len(content) // 2] ^= 1
            engine.write_bytes(content)
        elif damage == "a model that cannot start":
            replace(own.repository, version, "recommend/model.py", b"raise RuntimeError('broken on purpose')\n")
        else:
            index = next(name for name in Manifest.read(bundle).files if name.endswith("index.safetensors"))
            replace(own.repository, version, index, malicious_pickle(marker))
        with pytest.raises(BundleError if damage == "a byte flipped" else LaunchError):
            own.swap(bundle)
    assert served_version(own) == 1 and items(own) == before
    assert not marker.exists(), "the pickle was loaded"


def test_promise_28_after_a_swap_the_answer_is_the_new_version(own: Server, repository: Path) -> None:
    """Also for a request that was answered before, bit by bit the same."""
    assert served_version(own) == 1
    with published(own, repository) as bundle:
        own.swap(bundle)
        assert served_version(own) == int(bundle.name) > 1
        own.swap(own.repository / "recommend" / "1")
    assert served_version(own) == 1


@pytest.mark.parametrize("cycles", [7, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_promise_21_loading_and_unloading_leaks_nothing(own: Server, cycles: int) -> None:
    def cycle() -> None:
        with own.admin() as admin:
            admin.unload("encode")
            wait_until(lambda: not process_ids(own.pid, "encode"), "no process of it")
        own.reload("encode")

    for _ in range(3):  # what is made once and kept
        cycle()
    before = Footprint.of(own.pid)
    for _ in range(cycles):
        cycle()
    grown = Footprint.of(own.pid) - before
    # An allocator keeps what it was given; a leak of even one tensor arena or log buffer a cycle is beyond this.
    assert grown.server_bytes < 8 * MB + cycles * MB / 4, f"{cycles} cycles left {grown.server_bytes / MB:.1f} MB"
    assert grown.processes == 0 and grown.shm_files == 0 and grown.shm_bytes == 0, grown
    assert grown.files <= 2 and grown.threads <= 2, grown
    assert served_version(own) == 1


def test_promise_22_a_dead_stub_becomes_visible_and_recovers(supervised: Supervised) -> None:
    server = supervised.server
    supervised.events.clear()
    [victim] = process_ids(server.pid, "search")
    begin = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: supervised.events, "a word about it", 5.0)
    assert "a process of 'search' has died" in supervised.events[0]
    wait_until(lambda: any("'search' is whole again" in event for event in supervised.events), "its recovery")
    assert process_ids(server.pid, "search"), f"after {time.monotonic() - begin:.1f} s"


def test_promise_23_24_a_killed_server_leaves_no_orphan_and_no_shared_memory(supervised: Supervised) -> None:
    server, before = supervised.server, items(supervised.server)
    supervised.events.clear()
    died, models = server.pid, children_of(server.pid)
    assert Footprint.of(died).shm_files > 0, "nothing would be seen"
    os.kill(died, signal.SIGKILL)
    wait_until(lambda: not any(map(_is_running, models)), "the end of the processes of its models", 10.0)
    wait_until(lambda: any("answers again" in event for event in supervised.events), "its recovery")
    assert items(server) == before and server.pid != died
    assert not list(Path("/dev/shm").glob(f"*_{died}_*")), "shared memory of the killed server was left"


LAUNCHER = """
import sys
from pathlib import Path
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig
with Server(Path(sys.argv[1]), address=Address.free(), settings=ServingConfig(instances=1)) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


def test_promise_23_24_a_server_goes_with_its_launcher(repository: Path, tmp_path: Path) -> None:
    """Killed, so that it cannot tidy up: the kernel tells the server, and that takes its models and memory along."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(copy)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert launcher.stdout is not None
        server = int(launcher.stdout.readline())
        models = children_of(server)
        assert models and Footprint.of(server).shm_files > 0
    finally:
        launcher.kill()
        launcher.communicate()
    wait_until(lambda: not any(map(_is_running, [server, *models])), "the end of the server and its models", 30.0)
    # Removed by the process that outlived the launcher to do so.
    wait_until(lambda: not list(Path("/dev/shm").glob(f"*_{server}_*")), "the end of its shared memory", 30.0)


def test_promise_24_a_server_that_is_stopped_leaves_shared_memory_as_before(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    with Server(copy, address=Address.free(), settings=ServingConfig(instances=1)) as server:
        pid = server.pid
        assert Footprint.of(pid).shm_files > 0, "nothing would be seen"
    assert not list(Path("/dev/shm").glob(f"*_{pid}_*"))


def test_promise_30_what_was_changed_after_publishing_is_never_started(repository: Path, tmp_path: Path) -> None:
    """Every file of the bundle, by one bit; formats, targets and versions are in tests/safety and tests/serve."""
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    manifest = Manifest.read(copy / "recommend" / "1")
    for name in manifest.files:
        path = copy / manifest.path_of(name)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match="was changed after it was published"):
            Server(copy, address=Address.free()).start()
        path.write_bytes(content)


def _is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one that nobody waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
