"""Bytes to a server and back, as no client library would send them: HTTP over a socket, protobuf over gRPC."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from types import TracebackType
from typing import Any, BinaryIO, Final

import grpc

from fuserec.serve.launcher import Address

INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_TIMEOUT_S: Final = 20.0
# What a server may do to a connection whose bytes are no HTTP.
_CLOSED: Final = (ConnectionError, EOFError)


@dataclass(frozen=True)
class Reply:
    """What came back over either protocol.

    Attributes:
        status: An HTTP status ("400") or a gRPC state ("INVALID_ARGUMENT", "OK"); "CLOSED" where the server closed the
            connection without an answer.
        body: The payload, or the text of the gRPC error.
    """

    status: str
    body: bytes = b""

    @property
    def is_ok(self) -> bool:
        """Whether it is an answer."""
        return self.status in ("200", "OK")

    @property
    def error(self) -> str | None:
        """The text of an error in its proper form: with HTTP the string `error` of a JSON object; else None."""
        if self.is_ok or self.status == "CLOSED":
            return None
        if not self.status.isdecimal():
            return self.body.decode(errors="replace")
        with contextlib.suppress(ValueError):
            # A server may echo the bytes of a name that are no text.
            document = json.loads(self.body.decode(errors="replace"))
            if isinstance(document, dict) and isinstance(document.get("error"), str):
                return str(document["error"])
        return None


def http_request(
    path: str, body: bytes = b"", *, method: str = "POST", headers: Mapping[str, str] | None = None
) -> bytes:
    """Return a request with its length; `headers` may replace that, or add anything."""
    lines = {"Host": "server", "Content-Length": str(len(body))} | dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


class HTTP:
    """A keep-alive connection that is opened anew when the server has closed it; a context manager."""

    def __init__(self, address: Address, timeout_s: float = _TIMEOUT_S) -> None:
        self._where, self._timeout_s = (address.host, address.http_port), timeout_s
        self._socket: socket.socket | None = None

    def __enter__(self) -> HTTP:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def send(self, data: bytes, *, end: bool = False) -> Reply:
        """Send bytes and read one response.

        Args:
            data: What is sent as it is.
            end: Say that nothing more will come, so that a server does not wait for the rest of a request cut short.

        Raises:
            TimeoutError: The server neither answered nor closed the connection.
        """
        fresh = self._socket is None
        if self._socket is None:
            self._socket = socket.create_connection(self._where, self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            # It may have answered, and closed the connection, before the end of a request.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(data)
            if end:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
            reply, keeps = _read_response(self._socket, has_body=not data.startswith(b"HEAD "))
        except _CLOSED:
            self.close()
            # One that was closed between two calls says nothing about the second.
            return Reply("CLOSED") if fresh else self.send(data, end=end)
        except BaseException:
            self.close()
            raise
        if end or not keeps:
            self.close()
        return reply


def _read_response(connection: socket.socket, *, has_body: bool) -> tuple[Reply, bool]:
    """Return a response, and whether the connection stays open.

    Python's own reader accepts two versions of HTTP only, and this server repeats whichever it was asked in.

    Raises:
        EOFError: The connection ended before the response did.
        ValueError: Something else came.
    """
    with connection.makefile("rb") as stream:
        status, headers = _read_head(stream)
        while status.startswith("1"):  # "continue", to who expects it: the response comes after it
            status, headers = _read_head(stream)
        length = int(headers.get("Content-Length", "0")) if has_body else 0
        body = stream.read(length)
        if len(body) < length:
            raise EOFError(f"{len(body)} bytes came, expected {length}")
    return Reply(status, body), headers.get("Connection", "").lower() != "close"


def _read_head(stream: BinaryIO) -> tuple[str, Message]:
    line = stream.readline(65_537)
    if not line:
        raise EOFError("nothing came")
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError(f"came {line!r}, expected the status line of a response")
    return words[1].decode(), http.client.parse_headers(stream)


class GRPC:
    """A channel that carries any bytes as a request; a context manager."""

    def __init__(self, address: Address, timeout_s: float = _TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self.channel = grpc.insecure_channel(
            f"{address.host}:{address.grpc_port}",
            options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)],
        )

    def __enter__(self) -> GRPC:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def send(self, data: bytes, *, method: str = INFER, metadata: Any = (), timeout_s: float | None = None) -> Reply:
        """Send a message and return the message or the error that came back."""
        try:
            body = self.channel.unary_unary(method)(data, timeout=timeout_s or self._timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            return Reply(error.code().name, (error.details() or "").encode())
        return Reply("OK", body)


@contextlib.contextmanager
def connections(address: Address, timeout_s: float = _TIMEOUT_S) -> Iterator[tuple[GRPC, HTTP]]:
    """Yield both."""
    with GRPC(address, timeout_s) as grpc_side, HTTP(address, timeout_s) as http_side:
        yield grpc_side, http_side
