"""One HTTP connection, as steps that wait for nothing themselves.

`Connection.exchange` is a generator: it yields what its socket has to be ready for, and returns the answer. Whoever
runs it waits as suits them: a thread on one socket, a hedged call on two, an event loop on many.
"""

from __future__ import annotations

import base64
import errno
import os
import select
import socket
import ssl
from collections.abc import Generator, Sequence
from functools import cached_property
from typing import Any, Final

from fuserec.client._http_protocol import Reader
from fuserec.client._policy import Endpoint
from fuserec.client._proxy import Proxy, proxy_of
from fuserec.errors import MalformedAnswer

# What a step waits for: the socket can be read, or written.
READ: Final = select.POLLIN
WRITE: Final = select.POLLOUT
Steps = Generator[int, None, Reader]
Part = Generator[int, None, None]
Addresses = Sequence[tuple[int, Any]]

_RECEIVED_AT_ONCE: Final = 1 << 16
_MAX_CONNECT_BYTES: Final = 1 << 14


class Route:
    """How an endpoint is reached, through a proxy where the environment names one.

    Attributes:
        endpoint: It.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.proxy: Proxy | None = proxy_of("https" if endpoint.tls else "http", endpoint.host)

    @property
    def first_hop(self) -> tuple[str, int]:
        """Host and port that are connected to."""
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.endpoint.host, self.endpoint.port)

    @property
    def prefix(self) -> str:
        """What a request line begins with, so that a proxy knows where to."""
        return f"http://{self.endpoint.authority}" if self.proxy and not self.endpoint.tls else ""

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """What secures it; made once, as reading certificates takes milliseconds."""
        return self.endpoint.tls.context() if self.endpoint.tls else None

    @property
    def proxy_headers(self) -> dict[str, str]:
        """What the proxy asks of each request."""
        if self.proxy is None or self.proxy.user is None:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(self.proxy.user.encode()).decode()}"}


class Connection:
    """A connection to one endpoint, for one request at a time.

    Attributes:
        reader: Reads the answer to the last request.
        was_used: Whether it has carried a request before.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._socket: socket.socket | None = None
        self.reader = Reader(0)
        self.was_used = False

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        assert self._socket is not None, "asked for between steps only"
        return self._socket.fileno()

    def exchange(self, request: bytes, limit: int, addresses: Addresses) -> Steps:
        """Send a request and return its answer.

        Args:
            request: All of it.
            limit: Bytes that the body of the answer may have.
            addresses: Families and addresses of the first hop, where it is not connected yet.

        Raises:
            OSError: The connection could not be made, or broke.
            MalformedAnswer: What came is no HTTP.
        """
        self.reader = reader = Reader(limit)
        if self._socket is None:
            yield from self._connect(addresses)
        assert self._socket is not None
        yield from self._send(request)
        while not reader.is_whole:
            piece = yield from self._receive()
            if not piece and not reader.began:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed without an answer")
            reader.feed(piece)
        self.was_used = True
        return reader

    @property
    def first_hop(self) -> tuple[str, int]:
        """Host and port that it connects to."""
        return self._route.first_hop

    @property
    def is_open(self) -> bool:
        """Whether it was connected."""
        return self._socket is not None

    @property
    def is_idle(self) -> bool:
        """Whether it is still there: nobody has closed it, and nothing came that nobody asked for."""
        if self._socket is None:
            return False
        poll = select.poll()
        poll.register(self._socket, READ)
        return not poll.poll(0)

    def abort(self) -> None:
        """End what is under way, from any thread; whoever waits for it sees the end of the connection."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is not connected yet, and ends at the deadline

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, addresses: Addresses) -> Part:
        failure: OSError = OSError(f"{self._route.first_hop[0]!r} has no address")
        for family, address in addresses:
            self.close()
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = self._socket.connect_ex(address)
            if code == errno.EINPROGRESS:
                yield WRITE
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code == 0:
                break
            failure = OSError(code, os.strerror(code))
        else:
            raise failure
        context = self._route.context
        if context is not None:
            if self._route.proxy is not None:
                yield from self._tunnel()
            yield from self._secure(context)

    def _tunnel(self) -> Part:
        """Ask a proxy for a connection to the endpoint."""
        authority = self._route.endpoint.authority
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in self._route.proxy_headers.items()]
        yield from self._send("\r\n".join([*lines, "", ""]).encode())
        said = b""
        while b"\r\n\r\n" not in said:
            piece = yield from self._receive()
            said += piece
            if not piece or len(said) > _MAX_CONNECT_BYTES:
                raise MalformedAnswer("the proxy does not answer in HTTP")
        if not said.startswith((b"HTTP/1.1 2", b"HTTP/1.0 2")) or not said.endswith(b"\r\n\r\n"):
            raise OSError(f"the proxy said {said.split(b' ', 1)[-1][:40]!r}")

    def _secure(self, context: ssl.SSLContext) -> Part:
        assert self._socket is not None
        secured = context.wrap_socket(
            self._socket, server_hostname=self._route.endpoint.host, do_handshake_on_connect=False
        )
        self._socket = secured
        while True:
            try:
                secured.do_handshake()
                return
            except ssl.SSLWantReadError:
                yield READ
            except ssl.SSLWantWriteError:
                yield WRITE

    def _send(self, data: bytes) -> Part:
        assert self._socket is not None
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                yield WRITE
            except ssl.SSLWantReadError:
                yield READ

    def _receive(self) -> Generator[int, None, bytes]:
        assert self._socket is not None
        if not isinstance(self._socket, ssl.SSLSocket) or not self._socket.pending():
            yield READ  # tried first, it would mostly be in vain
        while True:
            try:
                return self._socket.recv(_RECEIVED_AT_ONCE)
            except (BlockingIOError, ssl.SSLWantReadError):
                yield READ
            except ssl.SSLWantWriteError:
                yield WRITE
            except ssl.SSLEOFError:
                return b""


def numeric_addresses(host: str, port: int) -> Addresses | None:
    """Return the address of a host that is one; None for a name, which takes time to look up."""
    try:
        return found(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        return None


def found(infos: Sequence[Any]) -> Addresses:
    """Return of what `getaddrinfo` found the families and addresses."""
    return [(info[0], info[4]) for info in infos]
