"""The processes of a server's models, as Linux shows them: the server itself does not say when one of them has died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple


class ModelProcess(NamedTuple):
    """A process of a model, and the version whose code it runs."""

    pid: int
    model: str
    version: int


def model_processes(server_pid: int, but: Collection[int] = ()) -> Counter[str]:
    """Return how many processes each model of a running server has; those that ended are not counted, nor is `but`."""
    return Counter(process.model for process in processes_of(server_pid) if process.pid not in but)


def process_ids(server_pid: int, model: str, version: int | None = None) -> list[int]:
    """Return the ids of the processes that one model of a running server has, of any version unless told otherwise."""
    return [
        process.pid
        for process in processes_of(server_pid)
        if process.model == model and version in (None, process.version)
    ]


def processes_of(server_pid: int) -> list[ModelProcess]:
    """Return the processes of all models of a running server; those that ended are left out."""
    return [process for child in children_of(server_pid) if (process := _model_process(child)) is not None]


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started and that are there."""
    found: list[int] = []
    for task in _entries(pid, "task"):
        try:
            found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
    return found


def _entries(pid: int, folder: str) -> list[Path]:
    """Return what a folder of `/proc` lists of a process; nothing where it has ended."""
    try:
        return list(Path(f"/proc/{pid}/{folder}").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def _model_process(pid: int) -> ModelProcess | None:
    """Return what a process runs: it was started as `STUB REPOSITORY/MODEL/VERSION/model.py ...`."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A process that has ended and was not waited for has no command line.
    if len(arguments) < 2 or not arguments[1].endswith(b"/model.py"):
        return None
    version = Path(arguments[1].decode(errors="replace")).parent
    return ModelProcess(pid, version.parent.name, int(version.name)) if version.name.isdecimal() else None


def listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which a process itself accepts connections."""
    inodes = set()
    for link in _entries(pid, "fd"):
        try:
            target = str(link.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and fields[9] in inodes:  # TCP_LISTEN
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def open_files(pid: int) -> int:
    """Return how many file descriptors a process has open; 0 where it is gone."""
    return len(_entries(pid, "fd"))
