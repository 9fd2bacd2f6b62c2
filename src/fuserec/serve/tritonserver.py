"""One process of the inference server: tied to whoever starts it, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fuserec.errors import LaunchError
from fuserec.serve import keeper
from fuserec.serve.binary import ServerBinary
from fuserec.serve.private_memory import can_keep_private, keep_private
from fuserec.serve.sealed import PLACEHOLDER, CannotSeal, seal, variables, wait_to_be_sealed

logger = logging.getLogger(__name__)

LOG_TAIL_LINES: Final = 20
_LOG_TAIL_BYTES: Final = 64 * 2**10
STOP_TIMEOUT_S: Final = 20.0
# In place of a file: where the launcher itself complains, as containers want it.
STDERR: Final = Path("-")
# More open files than any server needs; programs that close "all" descriptors take long with an unbounded limit.
_MOST_FILES: Final = 2**20


class ServerProcess:
    """A process of the inference server, from its start.

    Should the thread that starts it or the whole program die, the kernel kills the server, and a keeper process (see
    `fuserec.serve.keeper`) everything that the server started. Its models end themselves without their server.

    Args:
        binary: The executable.
        options: Its command line.
        environment: What it reads beside what its binary needs.
        log: File that what it prints is added to, `-` for stderr.
        sealed: More options, which no other user may read.

    Raises:
        CannotSeal: There are such options, and this machine lets nobody hide them; nothing was started.
        LaunchError: The log cannot be written, or the process cannot be made.
    """

    def __init__(
        self,
        binary: ServerBinary,
        options: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        sealed: Sequence[str] = (),
    ) -> None:
        self._log = log
        self._log_fd: int | None = None
        libc = ctypes.CDLL(None)
        launcher = os.getpid()
        self.max_files = _files_limit()

        def tie_to_launcher() -> None:
            # PR_SET_PDEATHSIG; the launcher may have died before the call, then nobody will send the signal.
            libc.prctl(1, signal.SIGKILL)
            if os.getppid() != launcher:
                os._exit(1)
            # What a shell or a caller ignores is inherited, and then the server could not be asked to end.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.max_files, self.max_files))
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
        try:
            self._process = subprocess.Popen(
                # A shell that becomes the server, so that its own process id can be part of an option.
                ["/bin/sh", "-c", f'exec "$0" --backend-config=python,shm-region-prefix-name={prefix} "$@"']
                + [str(binary.path), *options, *[PLACEHOLDER] * len(sealed)],
                env=binary.environment() | dict(environment) | variables(sealed),
                stdin=subprocess.DEVNULL,
                stdout=self._open_log(),
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Its files, and with the filter above its shared memory, are for this user alone.
                umask=0o077,
                preexec_fn=tie_to_launcher,
            )
            if sealed:
                seal(self.pid, len(sealed), starts=2)
        except subprocess.SubprocessError as error:
            self._close_log()
            raise CannotSeal(f"a process of this machine cannot be traced by its parent ({error})") from None
        except CannotSeal:
            self._process.wait()
            self._close_log()
            raise
        except OSError as error:
            self._close_log()
            raise LaunchError(f"the server cannot be started: {error}; see --log and the disk") from None
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(self.pid), _shm_prefix(self.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self.kill()
            self._process.wait()
            self._close_log()
            raise LaunchError(f"nothing can be started that would end the server with its launcher: {error}") from None

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
        """Return the end of its log, for people; a small part of it is read, however long it is."""
        if self._log_fd is None:
            return "    (it is above)" if self._log == STDERR else "    (it is closed)"
        try:
            status = os.fstat(self._log_fd)
            if not stat.S_ISREG(status.st_mode):
                return "    (it is no file that can be read again)"
            start = max(0, status.st_size - _LOG_TAIL_BYTES)
            lines = os.pread(self._log_fd, _LOG_TAIL_BYTES, start).decode(errors="replace").splitlines()
        except OSError as error:
            return f"    (it cannot be read: {error.strerror})"
        return "\n".join(f"    {line:.1000}" for line in lines[-LOG_TAIL_LINES:])

    def kill(self) -> None:
        """Kill it and its children; `stop` is still to be called."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def stop(self, *, kill: bool = False) -> None:
        """End it and its children: politely first, after 20 s by force; at once by force where it hangs anyway."""
        if not kill:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning("the server did not stop within %.0f s and is killed", STOP_TIMEOUT_S)
        # The group holds the server and the processes of its models, which have its group id as their own.
        self.kill()
        self._process.wait()
        for left in Path("/dev/shm").glob(f"{_shm_prefix(self.pid)}*"):
            left.unlink(missing_ok=True)
        self._dismiss_keeper()
        self._close_log()

    def _dismiss_keeper(self) -> None:
        assert self._keeper.stdin is not None, "it was made with a pipe"
        with contextlib.suppress(OSError):
            self._keeper.stdin.write(b".")
            self._keeper.stdin.close()
        self._keeper.wait()

    def _open_log(self) -> int:
        """Open the log to be added to, so that a rotation by truncation leaves no hole, and return its descriptor.

        It stays open, so that the end of it can be read after a rotation by renaming.
        """
        if self._log == STDERR:
            return 2
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._log_fd = os.open(self._log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self._log_fd

    def _close_log(self) -> None:
        if self._log_fd is not None:
            os.close(self._log_fd)
            self._log_fd = None


def _files_limit() -> int:
    """Return how many files the server may open: as many as this process may raise its limit to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    return max(soft, most) if soft != resource.RLIM_INFINITY else most


def _shm_prefix(pid: int | str) -> str:
    """Name of the shared memory of one server, so that nobody else's is removed after it was killed."""
    return f"fuserec_{pid}_"
