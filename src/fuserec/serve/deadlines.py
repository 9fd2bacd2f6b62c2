"""The end of the time that a request has, looked at while it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# The server is asked by a message, which takes some 80 us.
_POLL_S: Final = 0.02


class DeadlineExpired(Exception):
    """A request ran out of time, or its caller has gone; the message says which."""


class WorkRefused(ValueError):
    """A request turned out to need more work than it may; the message names the limit."""


class Deadline:
    """The time that one request has.

    Args:
        limit_s: Seconds from now on.
        name: The limit.
        is_cancelled: Whether the caller has gone; asked from time to time.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        limit_s: float,
        name: str,
        is_cancelled: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s, self._name, self._is_cancelled, self._clock = limit_s, name, is_cancelled, clock
        now = clock()
        self._ends, self._polls_at = now + limit_s, now + _POLL_S

    @classmethod
    def of(cls, timeout_us: int, max_request_ms: float, is_cancelled: Callable[[], bool]) -> Deadline:
        """Return the deadline of a request whose `timeout` is given in microseconds, 0 for none."""
        if 0 < timeout_us < 1e3 * max_request_ms:
            return cls(1e-6 * timeout_us, "timeout of the request", is_cancelled)
        return cls(1e-3 * max_request_ms, "max_request_ms", is_cancelled)

    @property
    def reason(self) -> str | None:
        """Why the request is over; None where it is not."""
        now = self._clock()
        if now >= self._ends:
            return f"deadline exceeded: {1e3 * self._limit_s:.0f} ms ({self._name}) were not enough"
        if now >= self._polls_at:
            self._polls_at = now + _POLL_S
            if self._is_cancelled():
                self._ends = now
                return "deadline exceeded: the caller has gone"
        return None

    def check(self) -> None:
        """Raise `DeadlineExpired` where the request is over."""
        if reason := self.reason:
            raise DeadlineExpired(reason)
