"""What operators and machines do to a running service: what is served goes on, and what went wrong is said."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as grpc

from bench._candidates import BROKEN, HANGING, put_version, remove_version
from fuserec import journal
from fuserec.cli._word import Standing, wait_for_experiment, wait_for_version
from fuserec.client import ClientError, Recommender
from fuserec.errors import LaunchError
from fuserec.export import rollout
from fuserec.manifest import Manifest, bundles
from fuserec.serve.launcher import Address, Server
from fuserec.serve.processes import children_of, model_processes, process_ids, processes_of
from fuserec.serve.settings import ServingConfig
from fuserec.serve.state import Notebook, Status
from fuserec.serve.supervisor import Supervisor, Watch
from fuserec.traffic import AB, Traffic
from tests.waiting import wait_until

pytestmark = pytest.mark.serving
CODE = "recommend/model.py"
ONE = ServingConfig(instances=1)


class Site:
    """A supervised server over a copy of the repository, with what its supervisor said."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.events: list[str] = []
        self.statuses: list[Status] = []
        self.stop = threading.Event()
        self.notebook = Notebook(server.address, server.repository)
        watch = Watch(tick_s=0.1, leave_s=3.0, load_s=60.0)
        supervisor = Supervisor(server, watch, self.events.append, self.on_status)
        self.thread = threading.Thread(target=supervisor.run, args=(self.stop,))
        self.thread.start()

    def on_status(self, status: Status) -> None:
        self.statuses.append(status)
        self.notebook.write(status)

    @property
    def repository(self) -> Path:
        return self.server.repository

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.address.grpc_port}"

    def wait_for(self, words: str) -> str:
        wait_until(lambda: any(words in event for event in self.events), f"{words!r} among {self.events}")
        return next(event for event in self.events if words in event)

    def version(self) -> str:
        with Recommender(self.target, timeout_ms=10_000) as client:
            return client.recommend(user_id=5, k=5).model_version

    def settled(self) -> None:
        """Wait until version 1 answers with all of its processes, and nothing is tried."""

        def is_settled() -> bool:
            with contextlib.suppress(LaunchError, ClientError):
                self.server.canary()
                there = model_processes(self.server.pid)["recommend"]
                whole = there == self.server.settings.instances and not self.server.lacking()
                return whole and self.server.manifest.version == 1 and self.statuses[-1].candidate is None
            return False

        wait_until(is_settled, f"a server as before: {self.events}", 180.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the notes of the servers here."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def kept(repository: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("site") / "repository"))
    with Server(copy, address=Address.free()) as server:
        site = Site(server)
        try:
            yield site
        finally:
            site.stop.set()
            site.thread.join()


@pytest.fixture
def site(kept: Site) -> Iterator[Site]:
    """A server of version 1 alone; it is left so."""
    kept.events.clear()
    yield kept
    assert kept.thread.is_alive(), f"the supervisor has ended: {kept.events}"
    Traffic(1).write(kept.repository)
    for version in set(bundles(kept.repository)) - {1}:
        remove_version(kept.repository, version)
    kept.settled()
    Traffic.clear(kept.repository)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        pytest.param("a link to itself", "items.parquet", id="a file that cannot be read"),
        pytest.param("a long name", "version 2", id="a name of 5,000 characters"),
        pytest.param("not UTF-8", "manifest.json", id="a manifest that is no text"),
    ],
)
def test_a_version_that_cannot_be_read_is_said_and_serving_goes_on(site: Site, what: str, words: str) -> None:
    pid = site.server.pid

    def damage(folder: Path) -> None:
        manifest = folder / "manifest.json"
        if what == "a link to itself":
            _loop(folder / "items.parquet")
        elif what == "not UTF-8":
            manifest.write_bytes(b"\xff\xfe{}")
        else:
            document = json.loads(manifest.read_text())
            document["files"][f"recommend/{'x' * 5_000}"] = {"bytes": 1, "sha256": "0" * 64}
            manifest.write_text(json.dumps(document))

    put_version(site.repository, damage=damage)
    assert words in site.wait_for("version 1 goes on")
    time.sleep(1.0)
    assert sum("goes on" in event for event in site.events) == 1, f"it was said more than once: {site.events}"
    assert site.version() == "1" and site.server.pid == pid


def test_a_version_that_does_not_load_takes_nothing_away(site: Site, repository: Path, tmp_path: Path) -> None:
    """Twice, with the fewest versions kept: the served one stays, and `publish` tells."""
    source = Path(shutil.copytree(repository, tmp_path / "source"))
    broken = put_version(source, files={CODE: BROKEN})
    before = process_ids(site.server.pid, "recommend")
    for number in (2, 3):
        since_s = time.monotonic()
        assert rollout.publish(source, site.repository, version=broken, keep=1) == number
        with pytest.raises(LaunchError, match=f"does not take version {number} and goes on with 1: .*cannot be loaded"):
            wait_for_version(site.target, site.repository, number, since_s, 90.0)
    assert site.version() == "1" and 1 in bundles(site.repository)
    assert process_ids(site.server.pid, "recommend", 1) == before, "processes of the served version were replaced"
    standing = Standing.of(site.target, site.repository)
    assert (standing.served, standing.wanted, list(standing.refused)) == (1, 3, ["3"]) or "2" in standing.refused
    assert "which is refused" in standing.facts()["wanted"]
    with grpc.InferenceServerClient(site.target) as stock:
        assert stock.is_server_ready(), "a version that serves nobody takes the server out of service"
    assert rollout.roll_back(site.repository) == 1


def test_a_copy_is_served_once_it_is_complete(site: Site, repository: Path) -> None:
    """File by file, the manifest first, as `cp` and `rsync` do."""
    names = ["recommend/manifest.json", *Manifest.read(repository / "recommend" / "1").files]
    for name in names:
        model, _, file = name.partition("/")
        target = site.repository / model / "2" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        source = repository / model / "1" / file
        if name == "recommend/index.safetensors":
            target.write_bytes(source.read_bytes()[:-100])
            site.wait_for("version 1 goes on")
            assert site.version() == "1"
            time.sleep(1.5)
        shutil.copyfile(source, target)
    site.wait_for("version 2 is served")
    wait_until(lambda: site.version() == "2", "an answer from the copy")


def test_the_last_good_version_is_served_where_the_newest_is_damaged(site: Site) -> None:
    put_version(site.repository, damage=lambda folder: (folder / "items.parquet").write_bytes(b""))
    site.wait_for("version 1 goes on")
    os.kill(site.server.pid, signal.SIGKILL)
    site.wait_for("the server answers again")
    assert site.version() == "1"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "model process"])
def test_the_served_version_is_back_whatever_a_candidate_does(site: Site, victim: str) -> None:
    version = put_version(site.repository, files={CODE: HANGING})
    wait_until(lambda: process_ids(site.server.pid, "recommend", version), "a process of the candidate")
    if victim == "server":
        os.kill(site.server.pid, signal.SIGKILL)
        site.wait_for("the server answers again")
    else:
        dead = process_ids(site.server.pid, "recommend", 1)[0]
        os.kill(dead, signal.SIGKILL)
        site.wait_for(f"version {version} waits")
        wait_until(lambda: len(set(process_ids(site.server.pid, "recommend", 1)) - {dead}) >= 2, "a new process")
    assert site.version() == "1"


@pytest.mark.slow
def test_a_large_candidate_is_read_beside_the_service(site: Site) -> None:
    """80 GB of a file without blocks: minutes of hashing."""
    name = "recommend/large.bin"

    def damage(folder: Path) -> None:
        manifest = folder / "manifest.json"
        document = json.loads(manifest.read_text())
        document["files"][name] = {"bytes": 80 * 2**30, "sha256": "0" * 64}
        # First in the list, so that nothing else is hashed before.
        document["files"] = {name: document["files"].pop(name), **document["files"]}
        manifest.write_text(json.dumps(document))
        with (folder / "large.bin").open("wb") as file:
            file.truncate(80 * 2**30)

    put_version(site.repository, damage=damage)
    wait_until(lambda: site.statuses[-1].candidate == 2, "the candidate is looked at")
    os.kill(site.server.pid, signal.SIGKILL)
    site.wait_for("the server answers again")
    assert site.version() == "1"


@pytest.mark.parametrize("number", [signal.SIGSTOP], ids=["SIGSTOP"])
def test_a_hung_process_is_replaced(site: Site, number: signal.Signals) -> None:
    hung = process_ids(site.server.pid, "recommend")[0]
    os.kill(hung, number)
    site.wait_for(f"process {hung} of a model is stopped")
    site.wait_for("'recommend' is whole again")
    assert hung not in process_ids(site.server.pid, "recommend")
    assert site.version() == "1"


def test_a_full_disk_ends_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the server is shown has no room: a new version waits, and a lost process is done without."""
    view = site.server._view
    assert view is not None
    pid, show, full = site.server.pid, view.show, [True]

    def show_or_fail(*arguments: object) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        show(*arguments)

    monkeypatch.setattr(view, "show", show_or_fail)
    put_version(site.repository)
    assert "No space left" in site.wait_for("version 1 goes on")
    os.kill(process_ids(site.server.pid, "recommend", 1)[0], signal.SIGKILL)
    site.wait_for("a process less serves")
    assert site.version() == "1" and site.server.pid == pid
    full[0] = False
    site.wait_for("'recommend' is whole again")
    site.wait_for("version 2 is served")
    assert site.server.pid == pid, "the server was started again"


def test_a_log_without_room_keeps_nobody_from_answering(repository: Path) -> None:
    with Server(repository, address=Address.free(), settings=ONE, log=Path("/dev/full")) as server:
        server.canary()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.is_running, "its end")
        assert "no file that can be read again" in server.epitaph()


def test_an_experiment_that_nobody_gets_is_said(site: Site, repository: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(repository, tmp_path / "source"))
    broken = put_version(source, files={"recommend/index.safetensors": b"no index"})
    number = rollout.publish(source, site.repository, version=broken, kind=AB, share=0.5)
    with pytest.raises(LaunchError, match=f"does not try version {number}, nobody gets it"):
        wait_for_experiment(site.target, site.repository, number, 60.0)
    assert "nobody gets it" in Standing.of(site.target, site.repository).facts()[AB]
    assert site.version() == "1"


def test_a_journal_says_who_and_when(site: Site, repository: Path) -> None:
    since_s = time.monotonic()
    number = rollout.publish(repository, site.repository, force=True)
    word = wait_for_version(site.target, site.repository, number, since_s, 120.0)
    assert word.took_s is not None and site.version() == str(number)
    asked, served = journal.events(site.repository)[-2:]
    assert (asked.kind, asked.version, asked.why) == (journal.ASKED, number, journal.PUBLISH) and "@" in asked.by
    assert (served.kind, served.version, served.by) == (journal.SERVED, number, site.target)
    assert rollout.publish(repository, site.repository) == number, "the same content became another version"
    assert rollout.roll_back(site.repository) == 1


def test_calls_meet_no_error_while_one_of_two_servers_ends(repository: Path) -> None:
    """In-flight calls are finished, late ones answered elsewhere."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2))
        servers = [Server(repository, address=Address.free(), settings=ONE) for _ in range(2)]
        for server in servers:
            server.start()
            stack.callback(server.stop)
        urls = [f"127.0.0.1:{server.address.grpc_port}" for server in servers]
        errors, answers, stop = [], [], threading.Event()

        def ask() -> None:
            with Recommender(urls, timeout_ms=10_000) as client:
                while not stop.is_set():
                    try:
                        answers.append(client.recommend(user_id=5, k=5).item_ids.tolist())
                    except ClientError as error:
                        errors.append(error)

        callers = [pool.submit(ask) for _ in range(2)]
        try:
            wait_until(lambda: len(answers) > 50, "calls under way")
            servers[0].stop()
            enough = len(answers) + 50
            wait_until(lambda: len(answers) > enough, "calls after it")
        finally:
            stop.set()
        concurrent.futures.wait(callers)
    assert not errors, f"{len(errors)} calls failed, such as {errors[0]}"
    assert all(answer == answers[0] for answer in answers)


LAUNCHER = """
import sys, time
from pathlib import Path
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig
from fuserec.serve.supervisor import Supervisor
host, *ports = sys.argv[2:]
address = Address(host, *map(int, ports))
server = Server(Path(sys.argv[1]), address=address, settings=ServingConfig(instances=1), log=Path(sys.argv[1] + ".log"))
server.start()
print("ready", server.pid, server.max_files, flush=True)
Supervisor(server, on_event=lambda event: print(event, flush=True)).run()
"""


@contextlib.contextmanager
def launched(
    repository: Path, folder: Path, prefix: tuple[str, ...] = (), host: str = "127.0.0.1"
) -> Iterator[tuple[subprocess.Popen[str], int, int, Address]]:
    """A launcher in a process of its own: that, the server's process id, its limit of files, and where it listens."""
    copy = Path(shutil.copytree(repository, folder / "repository"))
    address = Address.free()
    command = [*prefix, sys.executable, "-c", LAUNCHER, str(copy), host, *map(str, address.ports.values())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        word, pid, files = process.stdout.readline().split()
        assert word == "ready"
        yield process, int(pid), int(files), address
    finally:
        process.kill()
        process.communicate()


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("how", ["both killed", "server frozen", "everything frozen", "keeper killed first"])
def test_nothing_outlives_its_launcher(repository: Path, tmp_path: Path, how: str) -> None:
    with launched(repository, tmp_path) as (launcher, server, _, _):
        models = [each.pid for each in processes_of(server)]
        [keeper] = set(children_of(launcher.pid)) - {server}
        assert len(models) >= 4
        frozen = {"server frozen": [server], "everything frozen": [server, *models]}.get(how, [])
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        if how == "keeper killed first":
            os.kill(keeper, signal.SIGKILL)
        launcher.kill()
        if how == "both killed":
            os.kill(server, signal.SIGKILL)
        left = [server, *models, keeper]
        wait_until(lambda: not any(map(_is_running, left)), f"the end of {left}", 30.0)
        shared = f"fuserec_{server}_*"
        if how != "keeper killed first":
            wait_until(lambda: not list(Path("/dev/shm").glob(shared)), "the end of their shared memory", 10.0)
    for path in Path("/dev/shm").glob(shared):
        path.unlink()


def test_localhost_is_an_address(repository: Path, tmp_path: Path) -> None:
    with launched(repository, tmp_path, host="localhost") as (_, _, _, address):
        client = Recommender(f"localhost:{address.grpc_port}", timeout_ms=10_000)
        assert len(client.recommend(user_id=5, k=5)) == 5
        client.close()


def test_of_two_launchers_one_says_that_the_port_is_taken(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where both looked before either listened: what the other answers is not taken for its own."""
    with launched(repository, tmp_path) as (_, _, _, address):
        free = [False]

        def check_free(self: Address) -> None:
            if not free[0]:
                free[0] = True  # at its first look nobody listened
                return
            original(self)

        original = Address.check_free
        monkeypatch.setattr(Address, "check_free", check_free)
        with pytest.raises(LaunchError, match=f"cannot listen on 127.0.0.1:{address.grpc_port} for grpc"):
            Server(repository, address=address, settings=ONE).start()


@pytest.mark.slow
def test_a_full_server_is_not_a_dead_one(repository: Path, tmp_path: Path) -> None:
    """More idle connections than it may have files: it is told from one that hangs, and not started again."""
    limit = 400
    prefix = ("/bin/sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    with launched(repository, tmp_path, prefix) as (launcher, server, files, address), contextlib.ExitStack() as held:
        assert files == limit
        for _ in range(limit + 100):
            connection = socket.socket()
            connection.settimeout(0.2)
            held.callback(connection.close)
            with contextlib.suppress(OSError):
                connection.connect((address.host, address.http_port))
        time.sleep(12.0)
        assert launcher.poll() is None and _is_running(server), "a working server was started again"
        held.close()
        with Recommender(f"127.0.0.1:{address.grpc_port}", timeout_ms=20_000, retries=9) as client:
            assert len(client.recommend(user_id=5, k=5)) == 5


def test_the_limit_of_files_is_raised(repository: Path, tmp_path: Path) -> None:
    prefix = ("/bin/sh", "-c", 'ulimit -S -n 400; exec "$@"', "sh")
    with launched(repository, tmp_path, prefix) as (_, server, files, _):
        assert files > 400
        limits = Path(f"/proc/{server}/limits").read_text().splitlines()
        [line] = [line for line in limits if line.startswith("Max open files")]
        assert line.split()[3:5] == [str(files), str(files)]
