"""Process 1 of a container: it reaps what others leave behind, and passes signals on.

A launcher that were process 1 itself would inherit the processes of a killed server and never wait for them. Sharing
the namespace of the pod would help, and show every process of it, environment included, to each of its containers.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def leave_process_one() -> None:
    """Go on in a child where this is process 1 of its container; process 1 waits for it, and ends as it does.

    To be called before there is another thread.
    """
    if os.getpid() == 1:
        split()


def split() -> None:
    """Return in a child; this process becomes its init."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    child = os.fork()
    if child:
        _look_after(child)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)


def _look_after(child: int) -> NoReturn:
    def pass_on(number: int, frame: object) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            return

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            # As shells say it: 128 and the number of the signal.
            os._exit(code if code >= 0 else 128 - code)
