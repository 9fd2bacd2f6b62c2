"""Starts and stops the rival: uvicorn over `rival_app`, on two cores as our server is, or over `rival_gpu_app`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from bench.serving import rival_settings
from bench.serving.generator import ROOT

_START_S: Final = 180.0
_READY: Final = "Application startup complete."


@dataclass(frozen=True)
class Setup:
    """How uvicorn is run.

    Attributes:
        workers: Processes.
        threads: Of torch and faiss in each.
        device: Where the table is and batches are formed for, `cuda` or, in a rehearsal, `cpu`; None for faiss.
    """

    workers: int
    threads: int
    device: str | None = None

    @property
    def name(self) -> str:
        """As rows of the table name it."""
        on = "" if self.device is None else f" on {self.device}"
        return f"rival{on} {self.workers}x{self.threads}"

    @property
    def app(self) -> str:
        """What uvicorn runs."""
        return "bench.serving.rival_app" if self.device is None else "bench.serving.rival_gpu_app"


# With one process, calls run in FastAPI's thread pool, or the second core would have nothing to do: faiss puts no
# second thread on a single query. With two, the loop of each answers by itself and saves the way to a thread.
SETUPS: Final = (Setup(workers=2, threads=1), Setup(workers=1, threads=2))


class RivalServer:
    """The rival in processes of its own; a context manager that starts and stops them.

    Args:
        checkpoint: Folder of the trained model.
        bundle: Of ours, for the item vectors.
        setup: How it is run.
        log: File that receives what it prints.
    """

    def __init__(self, checkpoint: Path, bundle: Path, setup: Setup, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.setup = setup
        self._log = log
        self._environment = os.environ | {
            rival_settings.CHECKPOINT: str(checkpoint.absolute()),
            rival_settings.INDEX: str(bundle.absolute() / "index.safetensors"),
            rival_settings.THREADS: str(setup.threads),
            rival_settings.IN_POOL: "1" if setup.workers == 1 else "0",
            rival_settings.DEVICE: setup.device or "",
            # Also for the threads of the pool; and a thread of OpenMP that has done its part is not to spin.
            "OMP_NUM_THREADS": str(setup.threads),
            "OMP_WAIT_POLICY": "passive",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RivalServer:
        options = ["--host=127.0.0.1", f"--port={self.port}", f"--workers={self.setup.workers}", "--factory"]
        options += ["--loop=uvloop", "--http=httptools", "--no-access-log", "--timeout-worker-healthcheck=60"]
        libc, launcher = ctypes.CDLL(None), os.getpid()

        def tie_to_launcher() -> None:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
            if os.getppid() != launcher:
                os._exit(1)

        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", f"{self.setup.app}:create", *options],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tie_to_launcher,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The process that started the others."""
        assert self._process is not None
        return self._process.pid

    def _wait(self) -> None:
        """Wait until every worker has loaded the model: the first one alone would take all connections."""
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while (text := self._log.read_text(errors="replace")).count(_READY) < self.setup.workers:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.setup.name} did not start; the end of its log:\n{text[-2000:]}")
            time.sleep(0.1)

    def _stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
