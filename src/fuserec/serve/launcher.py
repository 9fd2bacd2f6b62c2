"""Start the inference server over a repository, wait until it answers, and end it with everything it started."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fuserec.client import Recommender, is_loopback
from fuserec.contract import RECOMMEND
from fuserec.errors import BundleError, ClientError, LaunchError, ServerOverloaded, UsageError
from fuserec.manifest import Manifest
from fuserec.serve.admin import Admin, Key
from fuserec.serve.binary import ServerBinary, find_binary
from fuserec.serve.device import Device, Need, decide
from fuserec.serve.observing import Observing
from fuserec.serve.probe import Survey, device_target, survey
from fuserec.serve.sealed import CannotSeal
from fuserec.serve.settings import ServingConfig
from fuserec.serve.stores import read_items
from fuserec.serve.tritonserver import ServerProcess
from fuserec.serve.view import View
from fuserec.traffic import served_folder

logger = logging.getLogger(__name__)

CANARY_TIMEOUT_MS = 5_000.0


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
        grpc, others = (f"[{self.host}]", f"ipv6:{self.host}") if self.is_ipv6 else (self.host, self.host)
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

    def all_listen(self) -> bool:
        """Return whether every port takes a connection."""
        try:
            for port in self.ports.values():
                socket.create_connection((self.host, port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def check_free(self) -> None:
        """Raise `LaunchError` naming the first port that something else listens on."""
        for name, port in self.ports.items():
            with socket.socket(socket.AF_INET6 if self.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise LaunchError(
                        f"cannot listen on {self.host}:{port} for {name} ({error.strerror}); "
                        f"stop what uses it or give --{name}-port"
                    ) from None


class Server:
    """An inference server over a repository; a context manager that starts and stops it.

    Its process does not outlive the thread that starts it, see `fuserec.serve.tritonserver`.

    Args:
        repository: Folder written by `fuserec export`.
        address: Where to listen; loopback unless told otherwise.
        settings: How the models run.
        observing: What it logs and traces.
        binary: The `tritonserver` executable; the one in the installed wheel by default.
        log: File that receives what the server prints, `-` for stderr; a temporary one by default. A second start adds
            to it.
        start_timeout_s: Seconds until the first answer.
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
        self._given_binary = binary
        self._given_log = log
        self._start_timeout_s = start_timeout_s
        self._scratch: Path | None = None
        self._process: ServerProcess | None = None
        # Made for each process: one that takes the port of a server that died is told nothing of use.
        self._key = Key(None)
        self._log_begun = False
        self._view: View | None = None
        self._manifest: Manifest | None = None
        self._device: Device | None = None
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
        if self._process is None:
            raise LaunchError("the server is not running")
        return self._process.pid

    @property
    def manifest(self) -> Manifest:
        """The bundle that is served."""
        if self._manifest is None:
            raise LaunchError("the server is not running")
        return self._manifest

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
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        """Start the server and return once a recommendation has come back.

        Raises:
            BundleError: The repository is missing or damaged; nothing was started.
            LaunchError: It runs already, a port is taken, the binary is missing, the device that was asked for cannot
                be had, the server died, or it did not answer in time.
        """
        if self._process is not None:
            raise LaunchError(f"the server over {self.repository} runs already; stop it first")
        manifest = Manifest.read(served_folder(self.repository))
        manifest.verify(self.repository)
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
            self._spawn(binary, manifest)
            self._wait_for_canary()
        except BaseException:
            self.stop()
            raise

    def admin(self) -> Admin:
        """Return the model repository API of this server."""
        return Admin(self.address.authority("grpc"), self._key)

    def swap(self, bundle: Path) -> None:
        """Serve another version: it is opened beside the old one, which answers until then and finishes what it began.

        Raises:
            BundleError: It is damaged; nothing was changed.
            LaunchError: It cannot be opened; the old version is served.
        """
        old, new = self.manifest, Manifest.read(bundle)
        new.verify(self.repository)
        # The front door last: when it answers as the new version, all do.
        stages = [name for name in new.models if name != new.models[0]]
        assert self._view is not None, "made with the process"
        with self.admin() as admin:
            try:
                for models in (stages, new.models[:1]):
                    self._show(admin, new, models)
                self._manifest = new
                self.canary()
            except LaunchError:
                self._manifest = old
                self._show(admin, old, old.models)
                raise
            for name in old.models:
                if name not in new.models:
                    admin.unload(name)
                    self._view.hide(name)

    def reload(self, model: str) -> None:
        """Open a model anew, with new processes.

        Raises:
            LaunchError: It cannot be opened.
        """
        with self.admin() as admin:
            self._show(admin, self.manifest, [model])

    def canary(self, timeout_ms: float = CANARY_TIMEOUT_MS) -> None:
        """Ask the front door one question; that it has too much to do is an answer too.

        Raises:
            LaunchError: The answer did not come, or not from the version that is served.
        """
        try:
            version = self._ask(timeout_ms)
        except ServerOverloaded:
            return
        except ClientError as error:
            raise LaunchError(f"the server did not answer: {error}\n{self._tail()}") from None
        if version != str(self.manifest.version):
            raise LaunchError(f"version {version} answered, expected {self.manifest.version}")

    def _ask(self, timeout_ms: float) -> str:
        """Ask for somebody who had the first item, and return the version that answered."""
        url = f"grpc://{self.address.authority('grpc')}"
        manifest = self.manifest
        if self._item is None or self._item[0] != manifest.version:
            items = read_items(self.repository / manifest.models[0] / str(manifest.version), manifest)
            self._item = manifest.version, int(items["item_id"][0])
        item_id = self._item[1]
        with Recommender(url, timeout_ms=timeout_ms, retries=0) as client:
            if manifest.models[0] == RECOMMEND:
                return client.recommend(history=[item_id], k=1).model_version
            return client.rank(history=[item_id], candidates=[item_id]).model_version

    def _show(self, admin: Admin, manifest: Manifest, models: Sequence[str]) -> None:
        assert self._view is not None, "made with the process"
        self._view.show(manifest, models)
        try:
            admin.load(models, self._start_timeout_s)
        except LaunchError as error:
            raise LaunchError(f"version {manifest.version}: {error}\n{self._tail()}") from None

    def _wait_for_canary(self) -> None:
        """Poll until the front door has answered and every port is open, gRPC's being the first of them."""
        deadline = time.monotonic() + self._start_timeout_s
        last = "no attempt"
        while time.monotonic() < deadline:
            if not self.is_running:
                raise LaunchError(self.epitaph())
            try:
                self._ask(CANARY_TIMEOUT_MS)
                if self.address.all_listen():
                    return
                last = "not all of its ports are open"
            except ClientError as error:
                # Nobody listens yet, or the model is broken: the deadline tells which.
                last = str(error)
            time.sleep(0.05)
        raise LaunchError(f"the server did not answer within {self._start_timeout_s:.0f} s ({last})\n{self._tail()}")

    def epitaph(self) -> str:
        """Return how the process ended, with the end of its log."""
        return "the server is not running" if self._process is None else self._process.epitaph()

    def stop(self) -> None:
        """End the server and its children: politely first, after 20 s by force. Safe to call at any time."""
        process, self._process, self._manifest = self._process, None, None
        self._view = None
        if process is not None:
            process.stop()
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
        self._scratch = Path(tempfile.mkdtemp(prefix="fuserec-serve-"))
        self._view = View(self._scratch / "models", self.repository, self.settings)
        self._view.show(manifest, manifest.models)
        options = binary.prepare(self._scratch)
        options += [
            f"--model-repository={self._view.folder}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in manifest.models),
            "--disable-auto-complete-config",
            *self.observing.options,
            # Without it the processes of a model take turns, and each finds its caches cold; see `ServingConfig`.
            "--rate-limit=execution_count",
            "--exit-timeout-secs=10",
        ]
        options += self.address.options
        if device_target() is None:
            options.append("--allow-gpu-metrics=false")
        self._process = self._started(binary, options)
        # A temporary log goes with its start.
        self._log_begun = self._given_log is not None

    def _started(self, binary: ServerBinary, options: Sequence[str]) -> ServerProcess:
        """Start the process with a key of its own, or with none where a key would be seen by others."""

        def start(key: Key) -> ServerProcess:
            self._key = key
            return ServerProcess(
                binary,
                [*options, *key.options],
                self.observing.environment | self.device.environment,
                self.log,
                append=self._log_begun,
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
