"""Signs of life of one model process: a few numbers in a file of their own, which the supervisor reads.

    bytes  0-7   beats: grows four times a second, in a thread, as long as the interpreter runs
    bytes  8-15  busy since: monotonic nanoseconds at which the execution under way began, 0 for none
    bytes 16-23  executions that have ended

A process that is stopped, or whose interpreter hangs, beats no more; one that hangs inside an execution stays busy.
The same thread ends the process once the server that started it is gone, whatever ended that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fuserec.files import replacing_file

VARIABLE: Final = "FUSEREC_VITALS"
BEAT_S: Final = 0.25
_NUMBER: Final = struct.Struct("<Q")
_LAYOUT: Final = struct.Struct("<QQQ")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Signs:
    """What a process last showed; see the top of this module."""

    beats: int
    busy_since_ns: int
    executions: int

    @classmethod
    def read(cls, folder: Path, pid: int) -> Signs | None:
        """Return the signs of a process; None where it shows none."""
        try:
            return cls(*_LAYOUT.unpack((folder / str(pid)).read_bytes()))
        except (OSError, struct.error):
            return None


class Heartbeat:
    """The signs of life of this process.

    Args:
        folder: Where the supervisor looks for them; None where nobody does.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._shown: mmap.mmap | bytearray = bytearray(_LAYOUT.size)
        self._executions = self._beats = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fuserec-heartbeat", daemon=True)

    @classmethod
    def of_environment(cls) -> Heartbeat:
        """Return the one that the launcher has asked for."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder) if folder else None)

    def start(self) -> None:
        """Begin to beat."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):  # without signs a process is judged by the answers of its model alone
            path = self._folder / str(os.getpid())
            path.write_bytes(bytes(_LAYOUT.size))
            with path.open("r+b") as file:
                self._shown = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more: the process is about to end in order."""
        self._stop.set()

    def begin(self) -> None:
        """Say that an execution begins."""
        _NUMBER.pack_into(self._shown, 8, time.monotonic_ns())

    def end(self) -> None:
        """Say that it has ended."""
        self._executions += 1
        _NUMBER.pack_into(self._shown, 16, self._executions)
        _NUMBER.pack_into(self._shown, 8, 0)

    def tell(self, what: dict[str, Any]) -> None:
        """Leave word for the supervisor, in place of the last one."""
        if self._folder is None:
            return
        try:
            with replacing_file(self._folder / f"{os.getpid()}.json") as temporary:
                temporary.write_text(json.dumps(what))
        except OSError as error:
            logger.warning("the supervisor cannot be told of the experiment (%s)", error.strerror)

    def _run(self) -> None:
        parent = os.getppid()
        while not self._stop.wait(BEAT_S):
            self._beats += 1
            _NUMBER.pack_into(self._shown, 0, self._beats)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)


def told(folder: Path, pid: int) -> dict[str, Any] | None:
    """Return the word that a process left with `Heartbeat.tell`; None where it left none."""
    try:
        word = json.loads((folder / f"{pid}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return word if isinstance(word, dict) else None
