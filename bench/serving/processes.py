"""What a process and all that it started have used, as Linux counts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_GONE = (FileNotFoundError, ProcessLookupError)


def tree(pid: int) -> list[int]:
    """Return a process and its descendants; empty when it is not there."""
    found = []
    waiting = [pid] if Path(f"/proc/{pid}").exists() else []
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                waiting += map(int, task.read_text().split())
            except _GONE:  # the thread has ended meanwhile
                continue
    return found


def cpu_seconds(pids: list[int]) -> float:
    """Return what processes have spent on the cores, in user and kernel mode, in steps of 10 ms."""
    total = 0
    for pid in pids:
        try:
            # The name in brackets may hold spaces.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except _GONE:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_A_SECOND


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return the memory of a process that is in RAM: all, and its own without what files or other processes share.

    (0, 0) when it is not there.
    """
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    except _GONE:
        return 0, 0
    return resident * _PAGE_BYTES, (resident - shared) * _PAGE_BYTES


def name(pid: int) -> str:
    """Return the program that a process runs; for a model's process, the model."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except _GONE:
        return "gone"
    if len(arguments) > 1 and arguments[1].endswith(b"/model.py"):
        return Path(os.fsdecode(arguments[1])).parents[1].name
    return Path(os.fsdecode(arguments[0])).name
