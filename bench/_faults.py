"""The faults of `bench.chaos`: what operators, machines and new versions do to running servers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench._candidates import BROKEN, HANGING, code_of_front_door, put_version
from fuserec.client import ClientError, Recommender
from fuserec.errors import FuserecError, LaunchError
from fuserec.export import rollout
from fuserec.manifest import Manifest, bundles
from fuserec.serve.launcher import Address, Server
from fuserec.serve.processes import process_ids
from fuserec.serve.settings import ServingConfig
from fuserec.serve.supervisor import Supervisor, Watch
from fuserec.traffic import Traffic

K: Final = 10
# For what a fault waits to see before it goes on.
PATIENCE_S: Final = 120.0


class Site:
    """Servers over copies of a repository, each with its supervisor; a context manager."""

    def __init__(self, repository: Path, folder: Path, settings: Sequence[ServingConfig]) -> None:
        self._stack = contextlib.ExitStack()
        self.servers = []
        self.events: list[str] = []
        for number, setting in enumerate(settings):
            copy = Path(shutil.copytree(repository, folder / f"repository-{number}"))
            log = folder / f"server-{number}.log"
            self.servers.append(Server(copy, address=Address.free(), settings=setting, log=log))

    def __enter__(self) -> Site:
        try:
            for server in self.servers:
                self._stack.enter_context(server)
            stop = threading.Event()
            for server in self.servers:
                supervisor = Supervisor(server, Watch(tick_s=0.25, load_s=20.0), self.events.append)
                thread = threading.Thread(target=supervisor.run, args=(stop,))
                thread.start()
                self._stack.callback(thread.join)
            self._stack.callback(stop.set)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_for(self, words: str) -> None:
        """Wait for what a supervisor says; a fault that comes too early would be another one."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(words in event for event in self.events) and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(FuserecError, OSError):
                if condition():
                    return
            time.sleep(0.05)

    @property
    def urls(self) -> list[str]:
        """Where the servers listen."""
        return [f"127.0.0.1:{server.address.grpc_port}" for server in self.servers]


def kill_one_process(site: Site) -> None:
    """Kill -9 of one of the processes of `recommend`."""
    os.kill(process_ids(site.servers[0].pid, "recommend")[0], signal.SIGKILL)


def kill_all_processes(site: Site) -> None:
    """Kill -9 of all processes of `recommend`."""
    for pid in process_ids(site.servers[0].pid, "recommend"):
        os.kill(pid, signal.SIGKILL)


def kill_server(site: Site) -> None:
    """Kill -9 of the server."""
    os.kill(site.servers[0].pid, signal.SIGKILL)


def stop_a_process(site: Site) -> None:
    """A model that hangs for three seconds: one of its processes is stopped and goes on."""
    pid = process_ids(site.servers[0].pid, "recommend")[0]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(3.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def fill_the_queue(site: Site) -> None:
    """Sixty-four more callers for three seconds, at a queue of four."""
    url = site.urls[0]
    until = time.monotonic() + 3.0

    def ask() -> None:
        with Recommender(url, timeout_ms=2_000.0, retries=0) as client:
            while time.monotonic() < until:
                with contextlib.suppress(ClientError):
                    client.recommend(user_id=1, k=K)

    threads = [threading.Thread(target=ask) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def swap_and_back(site: Site) -> None:
    """Another version is served, and then the first again."""
    server = site.servers[0]
    for version in (2, 1):
        rollout.serve(server.repository, version)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(LaunchError):  # it is being started again
                if server.manifest.version == version:
                    break
            time.sleep(0.05)


def stop_a_process_for_good(site: Site) -> None:
    """SIGSTOP of one of the processes of `recommend`."""
    os.kill(process_ids(site.servers[0].pid, "recommend")[0], signal.SIGSTOP)


def stop_all_processes(site: Site) -> None:
    """SIGSTOP of all processes of `recommend`."""
    for pid in process_ids(site.servers[0].pid, "recommend"):
        os.kill(pid, signal.SIGSTOP)


def stop_server(site: Site) -> None:
    """SIGSTOP of the server."""
    os.kill(site.servers[0].pid, signal.SIGSTOP)


def end_one_server(site: Site) -> None:
    """SIGTERM to one of two servers, whose supervisor starts it again."""
    os.kill(site.servers[0].pid, signal.SIGTERM)


def publish_what_does_not_load(site: Site) -> None:
    """Two versions in a row whose hashes agree and whose code fails, with one good version to keep."""
    repository = site.servers[0].repository
    Traffic.clear(repository)
    for _ in range(2):
        version = put_version(repository, files={code_of_front_door(repository): BROKEN}, of=1)
        site.wait_for(f"version {version}")


def publish_what_cannot_be_read(site: Site) -> None:
    """A version with a link in a circle, one with a name of 5,000 characters, one without a text for a manifest."""

    def loop(folder: Path) -> None:
        (folder / "items.parquet").unlink()
        (folder / "items.parquet").symlink_to("items.parquet")

    def long_name(folder: Path) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        document["files"][f"recommend/{'x' * 5_000}"] = {"bytes": 1, "sha256": "0" * 64}
        (folder / "manifest.json").write_text(json.dumps(document))

    repository = site.servers[0].repository
    Traffic.clear(repository)
    for damage in (loop, long_name, lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe")):
        put_version(repository, damage=damage, of=1)
        time.sleep(1.5)


def publish_in_a_hurry(site: Site) -> None:
    """Ten versions in a few seconds."""
    repository = site.servers[0].repository
    Traffic.clear(repository)
    for _ in range(10):
        put_version(repository, of=1)
        time.sleep(0.2)


def copy_file_by_file(site: Site) -> None:
    """A version that arrives as `cp` and `rsync` bring it, its manifest first."""
    repository = site.servers[0].repository
    Traffic.clear(repository)
    manifest = Manifest.read(bundles(repository)[1])
    for name in [f"{manifest.models[0]}/manifest.json", *manifest.files]:
        model, _, file = name.partition("/")
        target = repository / model / "3" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / model / "1" / file, target)
        time.sleep(0.3)
    site.wait_for("version 3 is served")


def damage_the_newest_and_kill_the_server(site: Site) -> None:
    """The newest version is damaged before it is served, then the server is killed."""
    repository = site.servers[0].repository
    Traffic.clear(repository)
    put_version(repository, damage=lambda folder: (folder / "items.parquet").write_bytes(b""), of=1)
    site.wait_for("goes on")
    kill_server(site)


def _hang_and(site: Site, do: Callable[[Site], None]) -> None:
    repository = site.servers[0].repository
    Traffic.clear(repository)
    version = put_version(repository, files={code_of_front_door(repository): HANGING}, of=1)
    site.wait_until(lambda: process_ids(site.servers[0].pid, "recommend", version))
    do(site)


def kill_server_while_another_version_hangs(site: Site) -> None:
    """Kill -9 of the server while it opens a version that never finishes."""
    _hang_and(site, kill_server)


def kill_process_while_another_version_hangs(site: Site) -> None:
    """Kill -9 of a process of the served version while another one never finishes opening."""

    def kill(site: Site) -> None:
        server = site.servers[0]
        os.kill(process_ids(server.pid, "recommend", server.manifest.version)[0], signal.SIGKILL)

    _hang_and(site, kill)


def kill_server_while_another_version_is_hashed(site: Site) -> None:
    """Kill -9 of the server while 80 GB of another version are read."""

    def grow(folder: Path) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        large = {"recommend/large.bin": {"bytes": 80 * 2**30, "sha256": "0" * 64}}
        document["files"] = large | document["files"]
        (folder / "manifest.json").write_text(json.dumps(document))
        with (folder / "large.bin").open("wb") as file:
            file.truncate(80 * 2**30)

    repository = site.servers[0].repository
    Traffic.clear(repository)
    put_version(repository, damage=grow, of=1)
    time.sleep(2.0)
    kill_server(site)


def rotate_the_log_and_kill_the_server(site: Site) -> None:
    """The log is renamed, as logrotate does, then the server is killed."""
    log = site.servers[0].log
    log.rename(log.with_suffix(".log.1"))
    kill_server(site)


@dataclass(frozen=True)
class Fault:
    """What is done, to how many servers, run how."""

    do: Callable[[Site], None]
    servers: int = 1
    settings: ServingConfig = field(default_factory=ServingConfig)


FAULTS: Final = {
    "kill-one-process": Fault(kill_one_process),
    "kill-all-processes": Fault(kill_all_processes),
    "kill-server": Fault(kill_server),
    "hanging-process": Fault(stop_a_process),
    "stopped-process": Fault(stop_a_process_for_good),
    "stopped-processes": Fault(stop_all_processes),
    "stopped-server": Fault(stop_server),
    "full-queue": Fault(fill_the_queue, settings=ServingConfig(queue_size=4)),
    "half-the-endpoints": Fault(kill_server, servers=2),
    "half-the-endpoints-end": Fault(end_one_server, servers=2),
    "swap-and-back": Fault(swap_and_back),
    "broken-versions": Fault(publish_what_does_not_load),
    "unreadable-versions": Fault(publish_what_cannot_be_read),
    "ten-versions": Fault(publish_in_a_hurry),
    "copied-version": Fault(copy_file_by_file),
    "damaged-version-kill-server": Fault(damage_the_newest_and_kill_the_server),
    "hanging-version-kill-server": Fault(kill_server_while_another_version_hangs),
    "hanging-version-kill-process": Fault(kill_process_while_another_version_hangs),
    "large-version-kill-server": Fault(kill_server_while_another_version_is_hashed),
    "rotated-log-kill-server": Fault(rotate_the_log_and_kill_the_server),
}
