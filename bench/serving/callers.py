"""Sends the prepared bytes of a call and waits for the answer; as little as can be done for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

# Returns the answer's bytes; `CallFailed` says how it went wrong.
Caller = Callable[[bytes], Awaitable[bytes]]
METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"


class CallFailed(Exception):
    """A call was refused, failed or timed out; the message is a short name of how."""


@contextlib.asynccontextmanager
async def open_caller(protocol: str, port: int, timeout_s: float) -> AsyncIterator[Caller]:
    """Yield what sends calls to a port on loopback: `grpc`, or `http` over connections that are kept open."""
    if protocol == "grpc":
        import grpc.aio

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield _over_grpc(channel.unary_unary(METHOD), timeout_s)
        return
    pool = HttpPool(port, timeout_s)
    try:
        yield pool.call
    finally:
        pool.close()


def _over_grpc(method: Any, timeout_s: float) -> Caller:
    import grpc

    async def call(body: bytes) -> bytes:
        try:
            answer: bytes = await method(body, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name) from None
        return answer

    return call


class HttpPool:
    """HTTP/1.1 over as many kept connections as there are calls at once."""

    def __init__(self, port: int, timeout_s: float) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._free: list[_Connection] = []

    async def call(self, body: bytes) -> bytes:
        """Send one request and return the content of its answer."""
        loop = asyncio.get_running_loop()
        while self._free and self._free[-1].closed:
            self._free.pop()
        if self._free:
            connection = self._free.pop()
        else:
            try:
                _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
            except OSError as error:
                raise CallFailed(type(error).__name__) from None
        # Closing it is what ends the wait.
        alarm = loop.call_later(self._timeout_s, connection.give_up)
        try:
            status, content = await connection.exchange(body)
        finally:
            alarm.cancel()
        self._free.append(connection)
        if status != 200:
            raise CallFailed(f"HTTP {status}")
        return content

    def close(self) -> None:
        """Close the connections that no call uses."""
        for connection in self._free:
            connection.give_up()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.closed = False
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: Any = None
        self._reason = "connection lost"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def exchange(self, body: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; the future holds status and content of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(body)
        return self._answer

    def give_up(self) -> None:
        """Close it, and fail what waits for it."""
        self._reason = "timeout"
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower()
        at = head.index(b"content-length:") + 15
        length = int(head[at : head.find(b"\r", at)] if head.find(b"\r", at) > 0 else head[at:])
        if len(self._received) < end + 4 + length:
            return
        content, self._received = self._received[end + 4 :], b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), content))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(CallFailed(self._reason))
