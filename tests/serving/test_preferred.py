"""One caller is answered by one process, whose caches stay warm; the others are there for load."""

import os
from pathlib import Path

import pytest

from fuserec.client import Recommender
from fuserec.contract import RECOMMEND
from fuserec.serve.launcher import Server

pytestmark = pytest.mark.serving

_CALLS = 100


def processes_of(server: Server, model: str) -> list[int]:
    """Return the processes of a model; the server starts each with the path of its `model.py`."""
    found = []
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(os.fsdecode(word).endswith(f"/{model}/1/model.py") for word in words):
                found.append(pid)
    return found


def waits(pid: int) -> int:
    """Return how often the thread of a process that executes requests has waited for one, and for other things."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "voluntary_ctxt_switches":
            return int(value)
    raise AssertionError(f"no count of context switches for process {pid}")


def test_one_caller_is_answered_by_one_process(server: Server) -> None:
    processes = processes_of(server, RECOMMEND)
    assert len(processes) == server.settings.instances == 2
    with Recommender(f"grpc://127.0.0.1:{server.address.grpc_port}") as recommender:
        recommender.recommend(user_id=5)
        before = [waits(pid) for pid in processes]
        for _ in range(_CALLS):
            recommender.recommend(user_id=5)
    spare, preferred = sorted(waits(pid) - count for pid, count in zip(processes, before, strict=True))
    assert preferred >= _CALLS, f"the process that answers waits before each of {_CALLS} calls, and waited {preferred}"
    assert spare < _CALLS // 4, f"the other process was woken {spare} times during {_CALLS} calls of one caller"
