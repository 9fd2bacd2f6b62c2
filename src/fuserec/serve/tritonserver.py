"""One process of the inference server: tied to whoever starts it, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from fuserec.serve.binary import ServerBinary
from fuserec.serve.private_memory import can_keep_private, keep_private
from fuserec.serve.sealed import PLACEHOLDER, CannotSeal, seal, variables, wait_to_be_sealed

logger = logging.getLogger(__name__)

LOG_TAIL_LINES: Final = 20
STOP_TIMEOUT_S: Final = 20.0
# In place of a file: where the launcher itself complains, as containers want it.
STDERR: Final = Path("-")


class ServerProcess:
    """A process of the inference server, from its start.

    Should the thread that starts it or the whole program die, the kernel sends it SIGTERM, so that nothing is left
    running.

    Args:
        binary: The executable.
        options: Its command line.
        environment: What it reads beside what its binary needs.
        log: File that receives what it prints, `-` for stderr.
        append: Whether the file keeps what it has.
        sealed: More options, which no other user may read.

    Raises:
        CannotSeal: There are such options, and this machine lets nobody hide them; nothing was started.
    """

    def __init__(
        self,
        binary: ServerBinary,
        options: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        append: bool,
        sealed: Sequence[str] = (),
    ) -> None:
        self._log = log
        libc = ctypes.CDLL(None)
        launcher = os.getpid()

        def tie_to_launcher() -> None:
            # PR_SET_PDEATHSIG; the launcher may have died before the call, then nobody will send the signal.
            libc.prctl(1, signal.SIGTERM)
            if os.getppid() != launcher:
                os._exit(1)
            if is_private:
                keep_private()
            if sealed:
                wait_to_be_sealed()

        if not (is_private := can_keep_private()):
            logger.warning(
                "other users of this machine can read the requests of this server in /dev/shm: the kernel has no "
                "seccomp filters, which would keep them from it"
            )
        prefix = _shm_prefix("$$")
        with _opened(log, append) as file:
            try:
                self._process = subprocess.Popen(
                    # A shell that becomes the server, so that its own process id can be part of an option.
                    ["/bin/sh", "-c", f'exec "$0" --backend-config=python,shm-region-prefix-name={prefix} "$@"']
                    + [str(binary.path), *options, *[PLACEHOLDER] * len(sealed)],
                    env=binary.environment() | dict(environment) | variables(sealed),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # Its files, and with the filter above its shared memory, are for this user alone.
                    umask=0o077,
                    preexec_fn=tie_to_launcher,
                )
            except subprocess.SubprocessError as error:
                raise CannotSeal(f"a process of this machine cannot be traced by its parent ({error})") from None
        if sealed:
            try:
                seal(self.pid, len(sealed), starts=2)
            except CannotSeal:
                self._process.wait()
                raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def epitaph(self) -> str:
        """Return how it ended, with the end of its log."""
        status = self._process.poll()
        if status is None:
            return "the server is running"
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        return f"the server {how}; the end of its log:\n{self.tail()}"

    def tail(self) -> str:
        """Return the end of its log, for people."""
        if self._log == STDERR:
            return "    (it is above)"
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_TAIL_LINES:])

    def stop(self) -> None:
        """End it and its children: politely first, after 20 s by force."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            logger.warning("the server did not stop within %.0f s and is killed", STOP_TIMEOUT_S)
        # The group holds the server and the processes of its models, which have its group id as their own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for left in Path("/dev/shm").glob(f"{_shm_prefix(self.pid)}*"):
            left.unlink(missing_ok=True)


def _opened(log: Path, append: bool) -> BinaryIO:
    if log == STDERR:
        return open(2, "wb", closefd=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab" if append else "wb")


def _shm_prefix(pid: int | str) -> str:
    """Name of the shared memory of one server, so that nobody else's is removed after it was killed."""
    return f"fuserec_{pid}_"
