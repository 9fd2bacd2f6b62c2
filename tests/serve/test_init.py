"""Process 1 of a container reaps orphans, passes signals on, and ends as its child does."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# What process 1 is by its number, this process is by its own wish: orphans come to it.
INIT = """
import ctypes, os, sys, time
ctypes.CDLL(None).prctl(36, 1)
from fuserec.serve.init import split
split()
exec(sys.argv[1])
"""
ORPHAN = """
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.2)
        os._exit(0)
    os._exit(0)
os.wait()
print(os.getppid(), flush=True)
time.sleep(30)
"""
SIGNALS = """
import signal
def hear(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, hear)
print("ready", flush=True)
time.sleep(30)
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", INIT, code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("code", "status"), [("sys.exit(0)", 0), ("sys.exit(5)", 5), ("os.kill(os.getpid(), 9)", 137)])
def test_it_ends_as_its_child_does(code: str, status: int) -> None:
    with start(code) as process:
        assert process.wait(30) == status


def test_signals_are_passed_on() -> None:
    with start(SIGNALS) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "SIGTERM\n"
        assert process.wait(30) == 7


def test_orphans_are_reaped() -> None:
    with start(ORPHAN) as process:
        assert process.stdout is not None
        init = int(process.stdout.readline())
        assert init == process.pid
        end = time.monotonic() + 10
        while len(children := Path(f"/proc/{init}/task/{init}/children").read_text().split()) > 1:
            assert time.monotonic() < end, f"{children} were not waited for"
            time.sleep(0.02)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
