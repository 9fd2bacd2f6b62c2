"""The lane of heavy requests: a thread beside the one that answers all others.

The inference server hands a process its next batch only when it is done with the last one, so that one request of
seconds would hold up all that come after it. A heavy one is put off instead: the process keeps what it needs to answer
it later, and goes on. The thread has a lower priority than the rest of its process: it gets the cores that nobody else
needs, and a small share of those that somebody does.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")
NICE: Final = 10
# Small ones among them are answered together: up to so many rows and estimated milliseconds.
_TOGETHER_ROWS, _TOGETHER_MS = 64, 50.0


@dataclass(frozen=True)
class Job(Generic[_T]):
    """A heavy request: what it is, its rows, and the estimated milliseconds of its work."""

    request: _T
    rows: int
    estimate_ms: float


class HeavyLane(Generic[_T]):
    """Answers jobs one after the other, small ones together.

    Args:
        answer: Answers some requests, whatever happens.
        capacity: Jobs that may wait.
    """

    def __init__(self, answer: Callable[[Sequence[_T]], None], capacity: int) -> None:
        self._answer, self._capacity = answer, capacity
        self._jobs: deque[Job[_T]] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="fuserec-heavy", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more jobs, and return when those that were taken are answered."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def put(self, job: Job[_T]) -> bool:
        """Take a job; return whether there was room."""
        with self._changed:
            if self._is_stopping or len(self._jobs) >= self._capacity:
                return False
            self._jobs.append(job)
            self._changed.notify()
        return True

    def _run(self) -> None:
        import numba

        numba.set_num_threads(1)  # of this thread's searches
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while jobs := self._next():
            self._answer([job.request for job in jobs])

    def _next(self) -> list[Job[_T]]:
        """Wait for jobs and return those to answer now; none where there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_stopping)
            taken: list[Job[_T]] = []
            while self._jobs and (not taken or _fits([*taken, self._jobs[0]])):
                taken.append(self._jobs.popleft())
            return taken


def _fits(jobs: Sequence[Job[_T]]) -> bool:
    return sum(job.rows for job in jobs) <= _TOGETHER_ROWS and sum(job.estimate_ms for job in jobs) <= _TOGETHER_MS
