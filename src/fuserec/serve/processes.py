"""The processes of a server's models, as Linux shows them: the server itself does not say when one of them has died."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path


def model_processes(server_pid: int, but: Collection[int] = ()) -> Counter[str]:
    """Return how many processes each model of a running server has; those that ended are not counted, nor is `but`."""
    there = (child for child in children_of(server_pid) if child not in but)
    return Counter(model for child in there if (model := _model_of(child)) is not None)


def process_ids(server_pid: int, model: str) -> list[int]:
    """Return the ids of the processes that one model of a running server has."""
    return [child for child in children_of(server_pid) if _model_of(child) == model]


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started and that are there."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
            continue
    return found


def _model_of(pid: int) -> str | None:
    """Return the model whose code a process runs: it was started as `STUB REPOSITORY/MODEL/VERSION/model.py ...`."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A process that has ended and was not waited for has no command line.
    if len(arguments) < 2 or not arguments[1].endswith(b"/model.py"):
        return None
    return Path(arguments[1].decode(errors="replace")).parents[1].name
