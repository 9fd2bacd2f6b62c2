"""Tasks are run once each, whoever is held up, and errors come back."""

from __future__ import annotations

import os
import threading

import pytest

from fuserec.kernels.search._threads import run


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_every_task_is_run_once(count: int, threads: int) -> None:
    done: list[int] = []
    run(done.append, count, threads)
    assert sorted(done) == list(range(count))


def test_a_second_thread_takes_part() -> None:
    both = threading.Barrier(2, timeout=30)
    run(lambda _: both.wait(), 2, 2)


def test_an_error_is_raised_after_the_others_are_done() -> None:
    done = []

    def task(number: int) -> None:
        if number == 1:
            raise RuntimeError("task 1")
        done.append(number)

    with pytest.raises(RuntimeError, match="task 1"):
        run(task, 20, 2)
    run(done.append, 3, 2)
    assert len(done) >= 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_has_helpers_of_its_own() -> None:
    run(lambda _: None, 4, 2)
    child = os.fork()
    if child == 0:
        both = threading.Barrier(2, timeout=30)
        try:
            run(lambda _: both.wait(), 2, 2)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
