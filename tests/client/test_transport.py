"""Calls to servers that are down, silent or not ours end in time with a typed error."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from fuserec.client import (
    AsyncRecommender,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    Recommender,
    ServerUnavailable,
)
from fuserec.client._policy import Endpoint

TRANSPORTS = ["grpc", "http"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are accepted and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in held:
            connection.close()


@pytest.fixture
def dripping_port() -> Iterator[int]:
    """A port where an answer comes byte by byte, each in less time than any single read would be given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(b"HTTP/1.1 200 OK\r\n")
                        while True:
                            connection.sendall(b"a: b\r\n")
                            time.sleep(0.02)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def call(url: str, timeout_ms: float) -> None:
    with Recommender(url) as recommender:
        recommender.recommend(user_id=1, timeout_ms=timeout_ms)


def call_async(url: str, timeout_ms: float) -> None:
    async def run() -> None:
        async with AsyncRecommender(url) as recommender:
            await recommender.recommend(user_id=1, timeout_ms=timeout_ms)

    asyncio.run(run())


@pytest.mark.parametrize("caller", [call, call_async], ids=["sync", "async"])
@pytest.mark.parametrize("scheme", TRANSPORTS)
def test_server_down(scheme: str, caller: type, closed_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(ServerUnavailable, match=f"{scheme}://127.0.0.1:{closed_port} is not available.*fuserec serve"):
        caller(f"{scheme}://127.0.0.1:{closed_port}", 3_000)
    assert time.monotonic() - start < 3.5, "the error came after the deadline of 3 s"


@pytest.mark.parametrize("caller", [call, call_async], ids=["sync", "async"])
@pytest.mark.parametrize("scheme", TRANSPORTS)
def test_server_silent(scheme: str, caller: type, silent_port: int) -> None:
    # A gRPC channel whose handshake is not answered counts as unavailable or as late; both are within the deadline.
    with pytest.raises(ClientError) as caught:
        caller(f"{scheme}://127.0.0.1:{silent_port}", 300)
    assert isinstance(caught.value, DeadlineExceeded | ServerUnavailable)
    if scheme == "http":
        assert "did not answer within 300 ms" in str(caught.value)


@pytest.mark.parametrize("caller", [call, call_async], ids=["sync", "async"])
def test_server_that_drips(caller: type, dripping_port: int) -> None:
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="did not answer within 300 ms"):
        caller(f"http://127.0.0.1:{dripping_port}", 300)
    assert time.monotonic() - begin < 10, "the answer, which has no end, was waited for"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:8001", "grpc://localhost:8001"),
        ("grpc://10.0.0.1:1", "grpc://10.0.0.1:1"),
        ("http://example.com:8000/", "http://example.com:8000"),
        ("[::1]:8001", "grpc://[::1]:8001"),
    ],
)
def test_endpoint_is_understood(url: str, expected: str) -> None:
    assert str(Endpoint.parse(url)) == expected


@pytest.mark.parametrize("url", ["", "localhost", "localhost:", ":8001", "ftp://localhost:1", "http://a:1/v2", "a:b"])
def test_endpoint_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="expected host:port"):
        Recommender(url)


@pytest.mark.parametrize("timeout_ms", [0, -1, float("nan"), float("inf")])
def test_timeout_is_refused(timeout_ms: float, closed_port: int) -> None:
    with pytest.raises(InvalidRequest, match="timeout_ms came as"):
        Recommender(f"127.0.0.1:{closed_port}", timeout_ms=timeout_ms)
