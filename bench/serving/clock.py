"""Wakes a coroutine at a moment, to a few microseconds.

The loops of asyncio and uvloop wait in whole milliseconds, as long as an answer takes, and the delay would count as
the server's: a load that is sent at given moments needs a timer of the kernel, `timerfd_create(2)`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from types import TracebackType
from typing import Final

_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_SPEC: Final = struct.Struct("qqqq")  # struct itimerspec: interval, then value; seconds, nanoseconds
_libc = ctypes.CDLL(None, use_errno=True)


class Alarm:
    """One timer for one waiting coroutine at a time; a context manager, made where a loop runs."""

    def __init__(self) -> None:
        self._fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        self._loop.add_reader(self._fd, self._ring)

    def __enter__(self) -> Alarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    async def until(self, moment: float) -> None:
        """Wait until `time.monotonic()` is `moment`; one turn of the loop when that is past."""
        if moment <= time.monotonic():
            await asyncio.sleep(0)
            return
        nanoseconds = int(moment * 1e9)
        spec = _SPEC.pack(0, 0, nanoseconds // 10**9, nanoseconds % 10**9)
        if _libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        self._waiting = self._loop.create_future()
        await self._waiting

    def _ring(self) -> None:
        os.read(self._fd, 8)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
