"""How calls travel: blocking or in asyncio, over gRPC or HTTP, with typed errors.

Each class carries the calls of one client to all its endpoints, which share a protocol. A connection is opened by the
first call that needs it. The coroutines of a blocking transport never suspend: `run_blocking` runs what awaits them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from fuserec.client._policy import Endpoint, Flight, Task, Transport, of_status, run_blocking
from fuserec.client._wire import Answer, Message
from fuserec.errors import ClientError, InvalidRequest, MalformedAnswer

T = TypeVar("T")

# Requests of one batch call that are on their way at once.
IN_FLIGHT = 4


class BaseTransport(Transport):
    """What all of them share: when it may not be used, and what errors mean."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints, self._names = endpoints, [str(endpoint) for endpoint in endpoints]
        self._process: int | None = None
        self._closed = False

    def check_usable(self) -> None:
        """Raise `InvalidRequest` after `close`, or in a fork of the process that made the first call."""
        if self._closed:
            raise InvalidRequest("this client is closed; make another one")
        if self._process != os.getpid():
            if self._process is not None:
                raise InvalidRequest(
                    f"this client made calls in process {self._process} and is used in its fork {os.getpid()}; "
                    "connections do not survive a fork: make a client in each process, or make no call before forking"
                )
            self._process = os.getpid()

    def _typed(self, error: Exception, place: int, message: Message) -> Exception:
        """Return the error of this library for one that ended an attempt; any other is a bug, and stays as it is."""
        if self._closed:
            return InvalidRequest("this client was closed during the call")
        endpoint = self._names[place]
        if isinstance(error, MalformedAnswer):
            typed: ClientError = MalformedAnswer(f"{endpoint} gave no answer that can be used: {error}")
        elif isinstance(error, ClientError):
            typed = error
        elif (state := self._state_of(error)) is not None:
            typed = of_status(*state, endpoint=endpoint, model=message.model, total_s=message.total_s)
        else:
            return error
        typed.endpoint = endpoint
        return typed

    def _state_of(self, error: Exception) -> tuple[str, str] | None:
        """Return the state and the message that an error stands for; None where it stands for none."""
        if isinstance(error, TimeoutError) and error.errno is None:
            return "DEADLINE_EXCEEDED", ""
        if isinstance(error, OSError):
            return "UNAVAILABLE", str(error) or type(error).__name__
        return None


class BlockingTransport(BaseTransport):
    """Waits by blocking the thread; threads may share one."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        super().__init__(endpoints)
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def gather(self, tasks: Sequence[Task[T]]) -> list[T]:
        if len(tasks) == 1:
            return [await tasks[0]()]
        with self._lock:
            self.check_usable()
            if self._pool is None:
                self._pool = concurrent.futures.ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fuserec-client")
        return list(self._pool.map(lambda task: run_blocking(task()), tasks))

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class AsyncTransport(BaseTransport):
    """Waits on the event loop of its first call; connections belong to it."""

    _loop: asyncio.AbstractEventLoop | None = None

    def check_usable(self) -> None:
        super().check_usable()
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise InvalidRequest("this client belongs to the event loop of its first call; make one in each loop")
        self._loop = loop

    def launch(self, place: int, message: Message, timeout_s: float) -> asyncio.Task[Answer]:
        task = asyncio.create_task(self.send(place, message, timeout_s))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left to read it
        return task

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> Sequence[Flight]:
        done, _ = await asyncio.wait(flights, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return list(done)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def gather(self, tasks: Sequence[Task[T]]) -> list[T]:
        places = asyncio.Semaphore(IN_FLIGHT)

        async def run(task: Task[T]) -> T:
            async with places:
                return await task()

        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(run(task)) for task in tasks]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in running]

    async def close(self) -> None:
        self._closed = True


def open_transport(endpoints: Sequence[Endpoint], *, blocking: bool) -> Transport:
    """Return what carries calls to endpoints, which share a protocol."""
    # Imported when it is known which: a client over HTTP does without gRPC.
    if endpoints[0].scheme == "grpc":
        from fuserec.client import _grpc

        return _grpc.GrpcTransport(endpoints) if blocking else _grpc.AsyncGrpcTransport(endpoints)
    from fuserec.client import _http

    return _http.HttpTransport(endpoints) if blocking else _http.AsyncHttpTransport(endpoints)
