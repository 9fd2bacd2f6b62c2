"""Waiting for what another thread or process is to do."""

import contextlib
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str, seconds: float = 90.0) -> None:
    """Return once a condition holds, and fail where it does not in time.

    Args:
        condition: Asked twenty times a second; an `OSError` means no, as where nobody listens yet.
        what: Is waited for; the words of the failure.
        seconds: At most; the machine may be busy with other tests.
    """
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
