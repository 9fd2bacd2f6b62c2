"""The steps of a run, and how one is carried out: in a process group of its own, killed at its time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.device._facts import ROOT


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: As the command line and the files have it.
        module: What is run.
        limit_s: Seconds after which it is killed; what it has measured by then is kept.
        about: What it is for, in a line.
    """

    name: str
    module: str
    limit_s: float
    about: str


# In the order in which they run: what the others are divided by, then whether the answers are right, then how fast.
STEPS: Final = (
    Step("limits", "bench.device.limits", 30.0, "copy bandwidth, matrix rates, launches: the most this card can do"),
    Step("correctness", "bench.device.correctness", 130.0, "behaviour suite, a million searches, sanitizers"),
    Step("times", "bench.device.times", 180.0, "the search beside its rivals, cell by cell, the aims"),
    Step("profiles", "bench.device.profiles", 45.0, "where the time of the slow cells goes, kernel by kernel"),
    Step("served", "bench.device.served", 90.0, "the whole service beside FastAPI and torch on the same GPU"),
)
TOTAL_S: Final = 480.0
REHEARSAL_LIMIT_S: Final = 120.0


@dataclass(frozen=True)
class Ended:
    """How a step ended.

    Attributes:
        state: "done", "failed" (its checks did not hold, or it raised) or "stopped" (at its limit).
        seconds: How long it took.
    """

    state: str
    seconds: float


def carry_out(step: Step, out: Path, *, limit_s: float, rehearse: bool, log: Path) -> Ended:
    """Run a step; its output goes to the terminal and to the end of `log`."""
    command = [sys.executable, "-m", step.module, "--out", str(out), "--seconds", f"{limit_s:.0f}"]
    command += ["--rehearse"] if rehearse else []
    start = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            state = _follow(process, start + limit_s, file.write)
        finally:
            _kill(process)  # also whatever it left running
    return Ended(state, round(time.monotonic() - start, 1))


def _follow(process: subprocess.Popen[bytes], deadline: float, write: Callable[[bytes], object]) -> str:
    """Pass on what the process prints until it ends or the deadline is there."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    while True:
        ended = process.poll() is not None
        while chunk := process.stdout.read(1 << 16):
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            write(chunk)
        if ended:
            return "done" if process.returncode == 0 else "failed"
        if time.monotonic() > deadline:
            return "stopped"
        time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def chosen(names: Sequence[str]) -> list[Step]:
    """Return the steps of these names, in the order in which they run; all of them for no name."""
    return [step for step in STEPS if not names or step.name in names]
