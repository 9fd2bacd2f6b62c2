"""Threads for compiled functions that hold no lock: the caller's own and helpers that wait for work asleep.

Numba's own threads would do, but for two things measured on two cores with other work on one of them: its OpenMP layer
spins, and a search of 1 ms took 24 ms, three slices of the scheduler; its "workqueue" layer aborts the process when
two Python threads search at once. Here a helper that does not get a core is not waited for.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class _Helpers:
    """A pool of threads, made when it is first needed, and made anew in a forked process, which has none."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._pool = None

    def pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max(os.cpu_count() or 1, 1), thread_name_prefix="fuserec-search")
        return self._pool


_helpers = _Helpers()


def run(task: Callable[[int], object], count: int, threads: int) -> None:
    """Call `task(0)` to `task(count - 1)`, once each, on up to `threads` threads, the calling one among them.

    Tasks are taken one by one, so that a thread that is held up leaves the rest to the others. An error in a task is
    raised here, after the others are done.
    """
    if min(threads, count) == 1:
        for number in range(count):
            task(number)
        return
    numbers = itertools.count()  # next() on it is atomic

    def work() -> None:
        while (number := next(numbers)) < count:
            task(number)

    helpers = [_helpers.pool().submit(work) for _ in range(min(threads, count) - 1)]
    try:
        work()
    finally:
        started = [helper for helper in helpers if not helper.cancel()]
    for helper in started:
        helper.result()
