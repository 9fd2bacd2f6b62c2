"""Calls over HTTP, blocking and in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import select
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from fuserec.client._http_connection import READ, Addresses, Connection, Route, found, numeric_addresses
from fuserec.client._http_protocol import Reader, answer_of, error_of, request_bytes
from fuserec.client._policy import Endpoint, of_status
from fuserec.client._tensors import readable
from fuserec.client._transport import AsyncTransport, BaseTransport, BlockingTransport
from fuserec.client._wire import Answer, Message
from fuserec.errors import MalformedAnswer


class _Http(BaseTransport):
    """What both share: connections that nobody uses at the moment, and what an answer means."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        super().__init__(endpoints)
        self._routes = [Route(endpoint) for endpoint in endpoints]
        self._idle: list[list[Connection]] = [[] for _ in endpoints]
        self._busy: set[Connection] = set()
        self._shut = False
        self._guard = threading.Lock()

    @contextlib.contextmanager
    def _connection(self, place: int, *, fresh: bool = False) -> Iterator[Connection]:
        """Lend a connection; it is kept if its last answer was read to the end."""
        with self._guard:
            idle = self._idle[place]
            connection = None
            while idle and not fresh and connection is None:
                candidate = idle.pop()
                if candidate.is_idle:
                    connection = candidate
                else:
                    candidate.close()
            connection = connection or Connection(self._routes[place])
            self._busy.add(connection)
        try:
            yield connection
        finally:
            with self._guard:
                self._busy.discard(connection)
                if connection.reader.can_be_reused and not self._shut:
                    self._idle[place].append(connection)
                else:
                    connection.close()

    def _shut_down(self) -> None:
        with self._guard:
            self._shut = True
            for connection in self._busy:
                connection.abort()
            for idle in self._idle:
                while idle:
                    idle.pop().close()

    def _request(self, place: int, message: Message, timeout_s: float) -> bytes:
        route = self._routes[place]
        extra = route.proxy_headers if route.prefix else {}
        return request_bytes(message, timeout_s, route.endpoint.authority, route.prefix, extra)

    def _answer(self, reader: Reader, place: int, message: Message) -> Answer:
        """Return the tensors of an answer, or raise what its status means."""
        if reader.status == 200:
            return answer_of(reader, self._names[place])
        if 300 <= reader.status < 400:
            where = readable(reader.headers.get("location", "nowhere"))
            raise MalformedAnswer(f"it redirects ({reader.status}) to {where}, which is not followed")
        said = error_of(reader)
        if said is None:
            if reader.status in (400, 404, 405):
                raise MalformedAnswer(f"it says {reader.status} otherwise than a fuserec server does")
            said = "no message"
        raise of_status(
            str(reader.status), said, endpoint=self._names[place], model=message.model, total_s=message.total_s
        )


def _is_stale(connection: Connection) -> bool:
    """Whether a connection broke because it had been idle: the server closed it just as the request was sent."""
    return connection.was_used and not connection.reader.began


class HttpFlight:
    """A call in flight: steps, and the socket that they wait for.

    Args:
        steps: Yield a connection and what it has to be ready for; return the answer or raise a `ClientError`.
        ends_at: When it is late, by `time.monotonic`.
    """

    def __init__(self, steps: Generator[tuple[Connection, int], None, Answer], ends_at: float) -> None:
        self._steps, self.ends_at = steps, ends_at
        self._outcome: Answer | Exception | None = None
        self.waits_for: tuple[Connection, int] | None = None
        self.go_on()

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self._outcome is not None

    def go_on(self, *, late: bool = False) -> None:
        """Run until a socket is to be waited for again, or to the end where it is late."""
        try:
            self.waits_for = self._steps.throw(TimeoutError()) if late else next(self._steps)
        except StopIteration as stop:
            self._outcome = stop.value
        except Exception as error:
            self._outcome = error

    def result(self) -> Answer:
        """Return the answer of a flight that is done, or raise its error."""
        assert self._outcome is not None, "asked for before it was done"
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Give it up; the server sees the end of the connection."""
        self._steps.close()


class HttpTransport(_Http, BlockingTransport):
    """Blocking; threads share the connections, each of which carries one call at a time."""

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        flight = self.launch(place, message, timeout_s)
        try:
            while not flight.is_done:
                _wait([flight], None)
        finally:
            flight.cancel()  # nothing happens to one that is done
        return flight.result()

    def launch(self, place: int, message: Message, timeout_s: float) -> HttpFlight:
        ends_at = time.monotonic() + timeout_s
        return HttpFlight(self._steps(place, message, timeout_s, ends_at), ends_at)

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> list[Any]:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not (done := [flight for flight in flights if flight.is_done]):
            if until is not None and time.monotonic() >= until:
                break
            _wait(flights, until)
        return done

    async def close(self) -> None:
        await super().close()
        self._shut_down()

    def _steps(
        self, place: int, message: Message, timeout_s: float, ends_at: float
    ) -> Generator[tuple[Connection, int], None, Answer]:
        request = self._request(place, message, timeout_s)
        try:
            for fresh in (False, True):
                with self._connection(place, fresh=fresh) as connection:
                    addresses = () if connection.is_open else _look_up(connection.first_hop, ends_at)
                    steps = connection.exchange(request, message.most_bytes, addresses)
                    try:
                        while True:
                            yield connection, next(steps)
                    except StopIteration as stop:
                        return self._answer(stop.value, place, message)
                    except (ConnectionError, MalformedAnswer):
                        if fresh or not _is_stale(connection):
                            raise
            raise AssertionError("a fresh connection is not stale")
        except Exception as error:
            raise self._typed(error, place, message) from None


def _wait(flights: Sequence[HttpFlight], until: float | None) -> None:
    """Wait until one of the flights can go on, or to a moment by `time.monotonic`; let those go on that can."""
    poll, waiting = select.poll(), {}
    for flight in flights:
        if not flight.is_done and flight.waits_for is not None:
            connection, event = flight.waits_for
            poll.register(connection, event)
            waiting[connection.fileno()] = flight
    ends_at = min(flight.ends_at for flight in waiting.values())
    left_s = (ends_at if until is None else min(ends_at, until)) - time.monotonic()
    for descriptor, _ in poll.poll(max(0.0, math.ceil(1e3 * left_s))):
        waiting.pop(descriptor).go_on()
    now = time.monotonic()
    for flight in waiting.values():
        if now >= flight.ends_at:
            flight.go_on(late=True)


def _look_up(first_hop: tuple[str, int], ends_at: float) -> Addresses:
    """Return the addresses of a host; the resolver has no time limit of its own, so a name is left to a thread."""
    addresses = numeric_addresses(*first_hop)
    if addresses is not None:
        return addresses
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(found(socket.getaddrinfo(*first_hop, type=socket.SOCK_STREAM)))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True, name="fuserec-resolver").start()
    try:
        answer = answers.get(timeout=max(0.0, ends_at - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, OSError):
        raise answer
    looked_up: Addresses = answer
    return looked_up


class AsyncHttpTransport(_Http, AsyncTransport):
    """In asyncio."""

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._send(place, message, timeout_s)
        except Exception as error:
            raise self._typed(error, place, message) from None

    async def _send(self, place: int, message: Message, timeout_s: float) -> Answer:
        request = self._request(place, message, timeout_s)
        for fresh in (False, True):
            with self._connection(place, fresh=fresh) as connection:
                addresses: Addresses = () if connection.is_open else await _look_up_async(connection.first_hop)
                steps = connection.exchange(request, message.most_bytes, addresses)
                try:
                    while True:
                        await _ready(connection, next(steps))
                except StopIteration as stop:
                    return self._answer(stop.value, place, message)
                except (ConnectionError, MalformedAnswer):
                    if fresh or not _is_stale(connection):
                        raise
        raise AssertionError("a fresh connection is not stale")

    async def close(self) -> None:
        await super().close()
        self._shut_down()


async def _ready(connection: Connection, event: int) -> None:
    """Wait on the running loop until a socket can be read or written."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    descriptor = connection.fileno()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    begin, end = (loop.add_reader, loop.remove_reader) if event == READ else (loop.add_writer, loop.remove_writer)
    begin(descriptor, wake)
    try:
        await ready
    finally:
        end(descriptor)


async def _look_up_async(first_hop: tuple[str, int]) -> Addresses:
    addresses = numeric_addresses(*first_hop)
    if addresses is None:
        loop = asyncio.get_running_loop()
        addresses = found(await loop.getaddrinfo(*first_hop, type=socket.SOCK_STREAM))
    return addresses
