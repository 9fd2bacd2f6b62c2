"""A process that hangs is told from one that works, and from a machine that stood still."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuserec.serve.heartbeat import Heartbeat, Signs, told
from fuserec.serve.vitals import Patience, Vitals

QUICK = Patience(silent_s=0.6, idle_s=0.6, stuck_s=3.0, longest_look_s=0.2)
PROGRAM = """
import sys, threading, time
from pathlib import Path
from fuserec.serve.heartbeat import Heartbeat
heartbeat = Heartbeat(Path(sys.argv[1]))
heartbeat.start()
print("ready", flush=True)
if sys.argv[2] != "idle":
    heartbeat.begin()
if sys.argv[2] == "busy":
    while True:
        pass
threading.Event().wait()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    started = []

    def run(what: str) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), what], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process.pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


def faults(folder: Path, pid: int, seconds: float = 2.0) -> dict[int, str]:
    """Look for a while; return the first faults."""
    vitals = Vitals(QUICK)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := vitals.look(folder, [pid]):
            return found
        time.sleep(0.05)
    return {}


def test_an_idle_process_does_not_hang(tmp_path: Path, start: Callable[[str], int]) -> None:
    assert faults(tmp_path, start("idle")) == {}


def test_a_stopped_process_hangs(tmp_path: Path, start: Callable[[str], int]) -> None:
    pid = start("idle")
    subprocess.run(["kill", f"-{signal.SIGSTOP.value}", str(pid)], check=True)
    assert "is stopped" in faults(tmp_path, pid, 20.0)[pid]


def test_a_process_that_waits_within_a_call_hangs(tmp_path: Path, start: Callable[[str], int]) -> None:
    pid = start("locked")
    assert "waits within a call" in faults(tmp_path, pid, 20.0)[pid]


def test_a_process_that_computes_is_given_longer(tmp_path: Path, start: Callable[[str], int]) -> None:
    pid = start("busy")
    assert faults(tmp_path, pid, 1.5) == {}, "it was judged as if it waited"
    assert "is busy with one call" in faults(tmp_path, pid, 60.0)[pid]


def test_a_gap_between_two_looks_judges_nobody(tmp_path: Path, start: Callable[[str], int]) -> None:
    """The machine was suspended, or the launcher stopped."""
    pid = start("locked")
    vitals = Vitals(QUICK)
    vitals.look(tmp_path, [pid])
    time.sleep(1.5)
    assert vitals.look(tmp_path, [pid]) == {}


def test_a_process_that_is_gone_is_nobody(tmp_path: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert faults(tmp_path, process.pid, 0.3) == {}


def test_signs_and_words(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path)
    heartbeat.start()
    pid = int(next(tmp_path.iterdir()).name)
    heartbeat.begin()
    signs = Signs.read(tmp_path, pid)
    assert signs is not None and signs.busy_since_ns > 0 and signs.executions == 0
    heartbeat.end()
    signs = Signs.read(tmp_path, pid)
    assert signs is not None and signs.busy_since_ns == 0 and signs.executions == 1
    assert told(tmp_path, pid) is None
    heartbeat.tell({"state": "opening"})
    assert told(tmp_path, pid) == {"state": "opening"}
    heartbeat.stop()
    assert Signs.read(tmp_path, pid + 1) is None


def test_without_a_supervisor_nothing_is_written() -> None:
    heartbeat = Heartbeat(None)
    heartbeat.start()
    heartbeat.begin()
    heartbeat.end()
    heartbeat.tell({})
