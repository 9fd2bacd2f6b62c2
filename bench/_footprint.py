"""What a server and the processes of its models hold on to: memory, open files, threads, shared memory."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from fuserec.serve.processes import children_of

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Footprint:
    """Sums over a server and the processes of its models; on Linux only.

    Attributes:
        server_bytes: Resident memory of the server itself.
        models_bytes: Resident memory of the processes of its models; pages that they share count in each.
        files: Open file descriptors.
        threads: Threads.
        processes: Processes; those that ended and were not waited for count as well.
        shm_files: Files in /dev/shm.
        shm_bytes: Their size.
    """

    server_bytes: int
    models_bytes: int
    files: int
    threads: int
    processes: int
    shm_files: int
    shm_bytes: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Measure the server with this process id."""
        children = children_of(pid)
        shared = [each.stat().st_size for each in Path("/dev/shm").glob(f"*_{pid}_*")]
        return cls(
            server_bytes=_resident(pid),
            models_bytes=sum(map(_resident, children)),
            files=sum(_entries(each, "fd") for each in (pid, *children)),
            threads=sum(_entries(each, "task") for each in (pid, *children)),
            processes=1 + len(children),
            shm_files=len(shared),
            shm_bytes=sum(shared),
        )

    def __sub__(self, before: Footprint) -> Footprint:
        """Return what was added since."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(before)
        return Footprint(**{name: mine[name] - theirs[name] for name in mine})


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _entries(pid: int, folder: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{folder}"))  # noqa: PTH208  (only counted)
    except (FileNotFoundError, ProcessLookupError):
        return 0
