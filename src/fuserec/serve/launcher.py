"""Start the inference server over a repository, wait until it answers, and end it with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from fuserec.client import Recommender
from fuserec.contract import RECOMMEND
from fuserec.errors import BundleError, ClientError, LaunchError, UsageError
from fuserec.manifest import Manifest, bundle_folder
from fuserec.serve.binary import ServerBinary, find_binary
from fuserec.serve.engines import device_target
from fuserec.serve.stores import read_items

logger = logging.getLogger(__name__)

LOG_TAIL_LINES = 20
STOP_TIMEOUT_S = 20.0
CANARY_TIMEOUT_MS = 5_000.0
# With this variable set, only who sends its value may load, unload and trace; over HTTP in the header, over gRPC in the
# metadata `triton-grpc-protocol-` + the header.
ADMIN_KEY = "FUSEREC_ADMIN_KEY"
ADMIN_HEADER = "fuserec-admin"
_ADMIN_APIS = "model-repository,shared-memory,trace,logging"


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
        return self.host == "localhost" or self.host.startswith("127.")

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

    def check_free(self) -> None:
        """Raise `LaunchError` naming the first port that something else listens on."""
        for name, port in self.ports.items():
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise LaunchError(
                        f"cannot listen on {self.host}:{port} for {name} ({error.strerror}); "
                        f"stop what uses it or give --{name}-port"
                    ) from None


class Server:
    """An inference server process; a context manager that starts and stops it.

    The process is tied to the thread that starts it: should that thread or the whole program die, the kernel
    sends the server SIGTERM, so that nothing is left running.

    Args:
        repository: Folder written by `fuserec export`.
        address: Where to listen; loopback unless told otherwise.
        binary: The `tritonserver` executable; the one in the installed wheel by default.
        log: File that receives what the server prints; a temporary one by default.
        start_timeout_s: Seconds until the first answer.
    """

    def __init__(
        self,
        repository: Path,
        *,
        address: Address | None = None,
        binary: Path | None = None,
        log: Path | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        self.repository = repository.absolute()
        self.address = address or Address()
        self._given_binary = binary
        self._given_log = log
        self._start_timeout_s = start_timeout_s
        self._scratch: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

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

    def start(self) -> None:
        """Start the server and return once a recommendation has come back.

        Raises:
            BundleError: The repository is missing or damaged; nothing was started.
            LaunchError: It runs already, a port is taken, the binary is missing, the server died, or it did not
                answer in time.
        """
        if self._process is not None:
            raise LaunchError(f"the server over {self.repository} runs already; stop it first")
        bundle = bundle_folder(self.repository)
        manifest = Manifest.read(bundle)
        manifest.verify(self.repository)
        self._remove_bytecode()
        if left := next(self.repository.glob("*/*/__pycache__"), None):
            raise BundleError(
                f"{left} cannot be removed, and Python would run it in the place of the models' own files; remove it "
                "where the repository can be written to"
            )
        self.address.check_free()
        binary = find_binary(self._given_binary)
        if not self.address.is_loopback and binary.wheel is not None:
            logger.warning(
                "listening on %s with the bundled server, which lacks later security fixes: other machines can reach "
                "it; for production run the vendor's current container and give --tritonserver PATH",
                self.address.host,
            )
        try:
            self._spawn(binary, manifest.models)
            items = read_items(bundle, manifest)
            self._wait_for_canary(manifest.models[0], int(items["item_id"][0]))
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Block while the server runs.

        Raises:
            LaunchError: It ended without having been asked to; the end of its log is in the message.
        """
        if self._process is not None:
            raise LaunchError(self._died(self._process.wait()))

    def stop(self) -> None:
        """End the server and its children: politely first, after 20 s by force. Safe to call at any time."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                logger.warning("the server did not stop within %.0f s and is killed", STOP_TIMEOUT_S)
            # The group holds the server and the processes of its models, which have its group id as their own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for left in Path("/dev/shm").glob(f"{_shm_prefix(process.pid)}*"):
                left.unlink(missing_ok=True)
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

    def _spawn(self, binary: ServerBinary, models: Sequence[str]) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="fuserec-serve-"))
        options = binary.prepare(self._scratch)
        options += [
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in models),
            "--disable-auto-complete-config",
            "--exit-timeout-secs=10",
        ]
        for name, port in self.address.ports.items():
            options += [f"--{name}-address={self.address.host}", f"--{name}-port={port}"]
        options += _restricted(os.environ.get(ADMIN_KEY, ""))
        if device_target() is None:
            options.append("--allow-gpu-metrics=false")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        libc = ctypes.CDLL(None)
        launcher = os.getpid()

        def tie_to_launcher() -> None:
            # PR_SET_PDEATHSIG; the launcher may have died before the call, then nobody will send the signal.
            libc.prctl(1, signal.SIGTERM)
            if os.getppid() != launcher:
                os._exit(1)

        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                # A shell that becomes the server, so that its own process id can be part of an option.
                ["/bin/sh", "-c", f'exec "$@" --backend-config=python,shm-region-prefix-name={_shm_prefix("$$")}']
                + ["sh", str(binary.path), *options],
                env=binary.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tie_to_launcher,
            )

    def _wait_for_canary(self, front_door: str, item_id: int) -> None:
        """Poll until the front door has answered somebody who had `item_id`."""
        deadline = time.monotonic() + self._start_timeout_s
        last = "no attempt"
        with Recommender(
            f"grpc://{self.address.host}:{self.address.grpc_port}", timeout_ms=CANARY_TIMEOUT_MS
        ) as client:
            while time.monotonic() < deadline:
                if self._process is not None and (status := self._process.poll()) is not None:
                    raise LaunchError(self._died(status))
                try:
                    if front_door == RECOMMEND:
                        client.recommend(history=[item_id], k=1)
                    else:
                        client.rank(history=[item_id], candidates=[item_id])
                    return
                except ClientError as error:
                    # Nobody listens yet, or the model is not up yet, or it is broken: the deadline tells which.
                    last = str(error)
                time.sleep(0.1)
        raise LaunchError(f"the server did not answer within {self._start_timeout_s:.0f} s ({last})\n{self._tail()}")

    def _remove_bytecode(self) -> None:
        """Remove what Python cached of the models' `model.py`; no setting keeps the server's interpreter from it.

        Python takes such a file for the source beside it, and the manifest does not vouch for it.
        """
        for folder in self.repository.glob("*/*/__pycache__"):
            shutil.rmtree(folder, ignore_errors=True)

    def _died(self, status: int) -> str:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"the server {how}; the end of its log:\n{self._tail()}"

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])


def _restricted(key: str) -> list[str]:
    """Return the options that close what changes the server to callers without a key; none for an empty one."""
    if not key:
        return []
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", key):
        raise UsageError(f"{ADMIN_KEY} is not 16 to 128 letters, digits, - and _; try `openssl rand -hex 32`")
    group = f"{_ADMIN_APIS}:{ADMIN_HEADER}={key}"
    return [f"--http-restricted-api={group}", f"--grpc-restricted-protocol={group}"]


def _shm_prefix(pid: int | str) -> str:
    """Name of the shared memory of one server, so that nobody else's is removed after it was killed."""
    return f"fuserec_{pid}_"
