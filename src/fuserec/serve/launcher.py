"""Start the inference server over a repository, wait until it answers, and end it with everything it started."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fuserec.client import Recommender, is_loopback
from fuserec.contract import RECOMMEND
from fuserec.errors import BundleError, ClientError, LaunchError, ServerOverloaded, UsageError
from fuserec.manifest import Manifest
from fuserec.serve import heartbeat
from fuserec.serve.admin import Admin, Key
from fuserec.serve.binary import ServerBinary, find_binary
from fuserec.serve.device import Device, Need, decide
from fuserec.serve.observing import Observing
from fuserec.serve.probe import Survey, device_target, survey
from fuserec.serve.processes import children_of, listening_ports, processes_of
from fuserec.serve.sealed import CannotSeal
from fuserec.serve.settings import ServingConfig
from fuserec.serve.stores import read_items
from fuserec.serve.tritonserver import ServerProcess
from fuserec.serve.versions import Versions
from fuserec.serve.view import View
from fuserec.serve.vitals import Stat

logger = logging.getLogger(__name__)

CANARY_TIMEOUT_MS = 5_000.0
# A server that was stopped by a signal for so long while it starts is started anew.
STOPPED_S = 2.0
# Room that the folder of a start needs beside a log: configurations and signs of life.
_SCRATCH_BYTES = 256 * 2**10
_PLAIN_PATH = re.compile(r"[\w./+,:@=-]+")


@dataclass(frozen=True)
class Address:
    """Where a server listens; three different ports on one host."""

    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002

    def __post_init__(self) -> None:
        ports = self.ports
        for name, port in ports.items():
            if not 1 <= port <= 65_535:
                raise UsageError(f"--{name}-port came as {port}, expected 1 to 65535")
        if len(set(ports.values())) < len(ports):
            raise UsageError(f"the ports must differ, came as {ports}")

    @property
    def ports(self) -> dict[str, int]:
        """The port of each service by its name."""
        return {"grpc": self.grpc_port, "http": self.http_port, "metrics": self.metrics_port}

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an address of IPv6, such as `::1`, or `::` for all."""
        return ":" in self.host

    def authority(self, service: str) -> str:
        """Return `host:port` of a service as URLs have it."""
        return f"[{self.host}]:{self.ports[service]}" if self.is_ipv6 else f"{self.host}:{self.ports[service]}"

    @property
    def options(self) -> list[str]:
        """Command line options by which the server listens there."""
        options = [f"--{name}-port={port}" for name, port in self.ports.items()]
        # gRPC's address is the beginning of an authority; that of the other two has a prefix of libevhtp's.
        host = self.bind_host
        grpc, others = (f"[{host}]", f"ipv6:{host}") if self.is_ipv6 else (host, host)
        return [*options, f"--grpc-address={grpc}", f"--http-address={others}", f"--metrics-address={others}"]

    @classmethod
    def free(cls) -> Address:
        """Return an address on loopback with three ports that nothing listens on at the moment."""
        with contextlib.ExitStack() as held:
            ports = []
            for _ in range(3):
                probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                probe.bind((cls.host, 0))
                ports.append(probe.getsockname()[1])
        return cls(cls.host, *ports)

    @property
    def bind_host(self) -> str:
        """The address behind a name such as `localhost`: the server takes no names.

        Raises:
            LaunchError: The name has no IPv4 address.
        """
        if self.is_ipv6:
            return self.host
        try:
            found = socket.getaddrinfo(self.host, None, socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            raise LaunchError(f"cannot listen on {self.host!r}: {error.strerror}; give --host an address") from None
        return str(found[0][4][0])

    def check_free(self) -> None:
        """Raise `LaunchError` naming the first port that something else listens on."""
        for name, port in self.ports.items():
            with socket.socket(socket.AF_INET6 if self.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.bind_host, port))
                except OSError as error:
                    raise LaunchError(
                        f"cannot listen on {self.host}:{port} for {name} ({error.strerror}); "
                        f"stop what uses it or give --{name}-port"
                    ) from None


class StartError(LaunchError):
    """The server was started, and ended or did not answer: what it serves may be at fault."""


class NoRoomError(LaunchError):
    """The machine is at fault and not a version: the same may succeed later."""


class Server:
    """An inference server over a repository; a context manager that starts and stops it.

    Its process does not outlive the thread that starts it, see `fuserec.serve.tritonserver`.

    Args:
        repository: Folder written by `fuserec export`.
        address: Where to listen; loopback unless told otherwise.
        settings: How the models run.
        observing: What it logs and traces.
        binary: The `tritonserver` executable; the one in the installed wheel by default.
        log: File that what the server prints is added to, `-` for stderr; a temporary one by default.
        start_timeout_s: Seconds until the first answer.

    Attributes:
        versions: Those of the repository.
        complaint: Why another version than the wanted one was started with; empty where none was.
    """

    def __init__(
        self,
        repository: Path,
        *,
        address: Address | None = None,
        settings: ServingConfig | None = None,
        observing: Observing | None = None,
        binary: Path | None = None,
        log: Path | None = None,
        start_timeout_s: float = 300.0,
    ) -> None:
        self.repository = repository.absolute()
        self.address = address or Address()
        self.settings = settings or ServingConfig()
        self.observing = observing or Observing()
        self.versions = Versions(self.repository)
        self.complaint = ""
        self._given_binary = binary
        self._given_log = log
        self._start_timeout_s = start_timeout_s
        self._scratch: Path | None = None
        self._process: ServerProcess | None = None
        # Made for each process: one that takes the port of a server that died is told nothing of use.
        self._key = Key(None)
        self._view: View | None = None
        self._manifest: Manifest | None = None
        self._device: Device | None = None
        # The version that each model answers from; during a swap they differ.
        self._loaded: dict[str, int] = {}
        # Processes of a model that was opened anew, and since when they are to go.
        self._leaving: dict[int, float] = {}
        # An item that the canary asks about, and the version that it is of.
        self._item: tuple[int, int] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return self._running().pid

    @property
    def max_files(self) -> int:
        """How many files, connections among them, the running server may have open."""
        return self._running().max_files

    @property
    def manifest(self) -> Manifest:
        """The bundle that is served."""
        if self._manifest is None:
            raise LaunchError("the server is not running")
        return self._manifest

    @property
    def loaded(self) -> dict[str, int]:
        """The version that each model answers from."""
        return dict(self._loaded)

    @property
    def device(self) -> Device:
        """Where its models compute: decided at the first start, and kept for those after it."""
        if self._device is None:
            raise LaunchError("the server was never started")
        return self._device

    @property
    def shown(self) -> Path:
        """The model repository that the running server sees, see `fuserec.serve.view`."""
        if self._view is None:
            raise LaunchError("the server is not running")
        return self._view.folder

    @property
    def vitals(self) -> Path:
        """The folder in which the processes of the models show signs of life, see `fuserec.serve.heartbeat`."""
        return self.shown.parent / "vitals"

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.is_running

    def _running(self) -> ServerProcess:
        if self._process is None:
            raise LaunchError("the server is not running")
        return self._process

    def start(self, version: int | None = None) -> None:
        """Start the server and return once a recommendation has come back.

        Args:
            version: What to serve; what the repository says by default. Where it is damaged, the last good one is
                served, and `complaint` says why.

        Raises:
            BundleError: The repository is missing, or no version that could be served is whole; nothing was started.
            LaunchError: It runs already, a port is taken, the binary is missing, the device that was asked for cannot
                be had, the server died, or it did not answer in time.
        """
        if self._process is not None:
            raise LaunchError(f"the server over {self.repository} runs already; stop it first")
        manifest = self._whole_version(version)
        self._remove_bytecode()
        if left := next(self.repository.glob("*/*/__pycache__"), None):
            raise BundleError(
                f"{left} cannot be removed, and Python would run it in the place of the models' own files; remove it "
                "where the repository can be written to"
            )
        self.address.check_free()
        binary = find_binary(self._given_binary)
        if not self.address.is_loopback:
            logger.warning(
                "listening on %s: other machines can reach this server, which asks nobody who they are%s",
                self.address.host,
                ""
                if binary.wheel is None
                else "; it is the bundled one, which lacks later security fixes: for "
                "production run the vendor's current container and give --tritonserver PATH",
            )
        if self._device is None:
            found = Survey(None) if self.settings.device == "cpu" else survey()
            self._device = decide(self.settings, found, Need.of(manifest, self.settings))
            logger.info("device: %s", self._device)
        try:
            self._manifest = manifest
            self._loaded = dict.fromkeys(manifest.models, manifest.version)
            self._spawn(binary, manifest)
            self._wait_for_canary()
        except OSError as error:
            self.stop(kill=True)
            raise LaunchError(f"the server cannot be started: {error}") from None
        except BaseException:
            self.stop(kill=True)
            raise

    def _whole_version(self, version: int | None) -> Manifest:
        """Return the first version in the order of `Versions` that is whole."""
        first = self.versions.first(cautiously=False) if version is None else version
        self.complaint, problem = "", None
        for number in self.versions.in_order(first):
            try:
                manifest = self.versions.verified(number)
            except BundleError as error:
                problem = problem or error
                continue
            if problem is not None:
                self.complaint = f"version {number} is served in place of {first}: {problem}"
            return manifest
        assert problem is not None, "the first version is there, or `first` has raised"
        raise problem

    def admin(self) -> Admin:
        """Return the model repository API of this server."""
        return Admin(self._target, self._key)

    @property
    def can_be_steered(self) -> bool:
        """Whether it opens versions and models while it runs; else it has to be started anew for that."""
        return self._key.value is not None

    @property
    def _target(self) -> str:
        return self.address.authority("grpc")

    def swap(self, bundle: Path) -> None:
        """Verify another version and serve it, see `turn_to`.

        Raises:
            BundleError: It is damaged; nothing was changed.
            LaunchError: It cannot be opened; the old version is served.
        """
        self.turn_to(self.versions.verified(int(bundle.name)))

    def turn_to(self, new: Manifest, between: Callable[[], object] = lambda: None) -> None:
        """Serve a verified version: it is opened beside the old one, which answers until then and finishes its work.

        Args:
            new: The version.
            between: Called before each step; what it raises ends the attempt.

        Raises:
            LaunchError: It cannot be opened, or does not answer; the old version is served.
        """
        old, view, process = self.manifest, self._view, self._running()
        assert view is not None, "made with the process"
        # The front door last: when it answers as the new version, all do.
        stages = [name for name in new.models if name != new.models[0]]
        with self.admin() as admin:
            try:
                for models in (stages, new.models[:1]):
                    between()
                    self._show(admin, new, models)
                self.canary(of=new)
                if self._process is not process:
                    raise LaunchError("the server was started anew meanwhile")
            except BaseException:
                if self._process is process and process.is_running:  # else a start loads what is served
                    self._turn_back(admin, old, new)
                raise
            self._manifest = new
            for name in old.models:
                if name not in new.models:
                    admin.unload(name)
                    view.hide(name)
                    self._loaded.pop(name, None)

    def _turn_back(self, admin: Admin, old: Manifest, new: Manifest) -> None:
        """Have what has turned to a new version answer from the old one, and what lacks a process meanwhile be whole.

        The other models are left alone: they never answered from anything else.
        """
        assert self._view is not None, "made with the process"
        turned = [name for name in new.models if admin.is_ready(name, new.version)]
        self._loaded |= dict.fromkeys(old.models, old.version)
        try:
            for name in set(turned) - set(old.models):
                admin.unload(name)
                self._view.hide(name)
                self._loaded.pop(name, None)
            back = [name for name in old.models if name in turned or name in self.lacking()]
            with contextlib.suppress(OSError):  # of no account: a model is shown again whenever it is opened
                self._view.show(old, [name for name in old.models if name not in back])
            if back:
                self._open_again(admin, back)
        except (LaunchError, OSError) as error:
            if not self.is_running or not turned:
                logger.warning("version %d lacks a process: %s", old.version, error)
                return
            # Some models would answer from one version and others from another.
            logger.warning("version %d cannot be turned back to (%s); the server is killed", old.version, error)
            self._running().kill()

    def lacking(self) -> list[str]:
        """Return the models that have fewer processes than they should, of the version that they answer from."""
        front, *_ = self.manifest.models
        there = Counter((each.model, each.version) for each in processes_of(self.pid) if each.pid not in self._leaving)
        return [
            model
            for model, version in self.loaded.items()
            if there[model, version] < self.settings.instances_of(model, front)
        ]

    def serving(self) -> list[int]:
        """Return the ids of the processes that answer."""
        loaded = self.loaded
        return [
            each.pid
            for each in processes_of(self.pid)
            if loaded.get(each.model) == each.version and each.pid not in self._leaving
        ]

    def reload(self, *models: str) -> None:
        """Open models anew, with new processes; those of before finish what they have begun.

        Raises:
            LaunchError: One cannot be opened.
        """
        with self.admin() as admin:
            self._open_again(admin, models)

    def _open_again(self, admin: Admin, models: Sequence[str]) -> None:
        before = [each.pid for each in processes_of(self.pid) if each.model in models]
        self._show(admin, self.manifest, models)
        # Not earlier: until then they are all that answers.
        self._leaving |= dict.fromkeys(before, time.monotonic())

    def end_leaving(self, leave_s: float) -> None:
        """End the processes of before that a model that was opened anew still has after a while.

        Server 2.51 waits for ever for what a process that died had begun, and so never ends its siblings.
        """
        children = children_of(self.pid)
        for pid, since in list(self._leaving.items()):
            if pid not in children:
                del self._leaving[pid]
            elif time.monotonic() - since > leave_s:
                logger.info("process %d of a model that was opened anew is ended", pid)
                del self._leaving[pid]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def end_candidate(self, version: int) -> None:
        """Kill the processes of a version that is being opened: the server gives it up, and nothing else changes."""
        with contextlib.suppress(LaunchError, ProcessLookupError):
            for each in processes_of(self.pid):
                if each.version == version and self._loaded.get(each.model) != version:
                    os.kill(each.pid, signal.SIGKILL)

    def canary(self, timeout_ms: float = CANARY_TIMEOUT_MS, of: Manifest | None = None) -> None:
        """Ask the front door one question; that it has too much to do is an answer too.

        Args:
            timeout_ms: For the answer.
            of: The version that is to answer; the served one by default.

        Raises:
            LaunchError: The answer did not come, or not from that version.
        """
        manifest = of or self.manifest
        try:
            with self.asking(timeout_ms) as client:
                version = self.ask(client, manifest)
        except ServerOverloaded:
            return
        except ClientError as error:
            raise LaunchError(f"the server did not answer: {error}\n{self._tail()}") from None
        if version != str(manifest.version):
            raise LaunchError(f"version {version} answered, expected {manifest.version}")

    def asking(self, timeout_ms: float) -> Recommender:
        """Return a client of this server."""
        return Recommender(f"grpc://{self._target}", timeout_ms=timeout_ms, retries=0)

    def ask(self, client: Recommender, manifest: Manifest) -> str:
        """Ask for somebody who had the first item of a version, and return the version that answered.

        Raises:
            ClientError: Nobody answered.
        """
        known = self._item
        if known is None or known[0] != manifest.version:
            items = read_items(self.repository / manifest.models[0] / str(manifest.version), manifest)
            known = self._item = manifest.version, int(items["item_id"][0])
        item_id = known[1]
        if manifest.models[0] == RECOMMEND:
            return client.recommend(history=[item_id], k=1).model_version
        return client.rank(history=[item_id], candidates=[item_id]).model_version

    def _show(self, admin: Admin, manifest: Manifest, models: Sequence[str]) -> None:
        assert self._view is not None, "made with the process"
        try:
            self._view.show(manifest, models)
        except OSError as error:
            raise NoRoomError(f"version {manifest.version} cannot be shown to the server: {error}") from None
        try:
            # At once: the server ends the processes of the version before.
            admin.load(models, self._start_timeout_s, lambda model: self._loaded.__setitem__(model, manifest.version))
        except LaunchError as error:
            raise LaunchError(f"version {manifest.version}: {error}\n{self._tail()}") from None

    def _wait_for_canary(self) -> None:
        """Poll until every port is open, and this server's, and the front door has answered."""
        deadline = time.monotonic() + self._start_timeout_s
        last, moved = "no attempt", time.monotonic()
        while time.monotonic() < deadline:
            if not self.is_running:
                # What listens on one of its ports now is what kept it from starting.
                self.address.check_free()
                raise StartError(self.epitaph())
            if (stat := Stat.of(self.pid)) is None or stat.state not in "Tt":
                moved = time.monotonic()
            elif time.monotonic() - moved > STOPPED_S:
                raise LaunchError("the server was stopped by a signal while it started")
            if self._listens():
                try:
                    with self.asking(CANARY_TIMEOUT_MS) as client:
                        self.ask(client, self.manifest)
                    return
                except ClientError as error:
                    # The model is broken, or it is a moment too early: the deadline tells which.
                    last = str(error)
            else:
                last = "not all of its ports are open"
            time.sleep(0.05)
        raise StartError(f"the server did not answer within {self._start_timeout_s:.0f} s ({last})\n{self._tail()}")

    def _listens(self) -> bool:
        """Return whether every port is open and belongs to this server: another one's answers say nothing of it."""
        mine = {port for pid in (self.pid, *children_of(self.pid)) for port in listening_ports(pid)}
        return mine >= set(self.address.ports.values())

    def epitaph(self) -> str:
        """Return how the process ended, with the end of its log."""
        return "the server is not running" if self._process is None else self._process.epitaph()

    def stop(self, *, kill: bool = False) -> None:
        """End the server and its children: politely first, after 20 s by force. Safe to call at any time.

        Args:
            kill: Do not ask: it hangs, or nobody has called it yet.
        """
        process, self._process, self._manifest = self._process, None, None
        self._view = None
        self._loaded = {}
        self._leaving = {}
        if process is not None:
            process.stop(kill=kill)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
            self._remove_bytecode()

    @property
    def log(self) -> Path:
        """The file that receives what the server prints."""
        if self._given_log is not None:
            return self._given_log
        if self._scratch is None:
            raise LaunchError("the server is not running and its temporary log is gone")
        return self._scratch / "server.log"

    def _spawn(self, binary: ServerBinary, manifest: Manifest) -> None:
        self._scratch = _make_scratch()
        self._view = View(self._scratch / "models", self.repository, self.settings)
        self._view.show(manifest, manifest.models)
        self.vitals.mkdir()
        options = binary.prepare(self._scratch)
        options += [
            f"--model-repository={self._view.folder}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in manifest.models),
            "--disable-auto-complete-config",
            # Else it is not ready while another version is opened, and never again after one could not be: every
            # replica at once would be taken out of service for a version that serves nobody.
            "--strict-readiness=false",
            *self.observing.options,
            "--exit-timeout-secs=10",
        ]
        options += self.address.options
        if device_target() is None:
            options.append("--allow-gpu-metrics=false")
        self._process = self._started(binary, options)

    def _started(self, binary: ServerBinary, options: Sequence[str]) -> ServerProcess:
        """Start the process with a key of its own, or with none where a key would be seen by others."""

        def start(key: Key) -> ServerProcess:
            self._key = key
            return ServerProcess(
                binary,
                [*options, *key.options],
                {**self.observing.environment, **self.device.environment, heartbeat.VARIABLE: str(self.vitals)},
                self.log,
                sealed=key.sealed_options,
            )

        try:
            return start(Key())
        except CannotSeal as error:
            logger.warning(
                "%s, so the key of the administrative API would be seen by every user: that API is closed to the "
                "launcher too, which starts the server anew where it would have loaded a model",
                error,
            )
            return start(Key(None))

    def _remove_bytecode(self) -> None:
        """Remove what Python cached of the models' `model.py`; no setting keeps the server's interpreter from it.

        Python takes such a file for the source beside it, and the manifest does not vouch for it.
        """
        for folder in self.repository.glob("*/*/__pycache__"):
            shutil.rmtree(folder, ignore_errors=True)

    def _tail(self) -> str:
        return "" if self._process is None else self._process.tail()


def _make_scratch() -> Path:
    """Make a folder for the few small files of one start, wherever there is room for them.

    Raises:
        LaunchError: There is none.
    """
    problems = []
    for parent in (os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"):
        if not parent:
            continue
        if not _PLAIN_PATH.fullmatch(parent):  # the server starts its models by a line for a shell
            problems.append(f"{parent}: the name has characters that the server cannot take")
            continue
        try:
            folder = Path(tempfile.mkdtemp(prefix="fuserec-serve-", dir=parent))
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        try:
            (folder / "room").write_bytes(bytes(_SCRATCH_BYTES))
            (folder / "room").unlink()
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            shutil.rmtree(folder, ignore_errors=True)
            continue
        if problems:
            logger.warning("temporary files go to %s (%s)", folder, "; ".join(problems))
        return folder
    raise LaunchError(f"no room for temporary files ({'; '.join(problems)}); give TMPDIR a folder with some")
