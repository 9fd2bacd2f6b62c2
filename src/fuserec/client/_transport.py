"""How tensors travel: the stock client over gRPC or HTTP, blocking or in asyncio, one deadline, typed errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from tritonclient.utils import InferenceServerException

from fuserec.client._errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerUnavailable,
)
from fuserec.client._wire import Tensors

DATATYPES = {
    np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32",
    np.dtype(np.float32): "FP32",
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.object_): "BYTES",
}
# The stock client waits up to two minutes before it tries a lost server again; a backend wants it back at once.
CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens, from `host:port`, `grpc://host:port` or `http://host:port`."""

    scheme: str
    authority: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read a URL; gRPC when no scheme is given."""
        scheme, separator, authority = url.partition("://")
        if not separator:
            scheme, authority = "grpc", url
        host, colon, port = authority.rstrip("/").rpartition(":")
        if scheme not in ("grpc", "http") or not host or not colon or not port.isdecimal() or "/" in host:
            raise InvalidRequest(f"endpoint came as {url!r}, expected host:port, grpc://host:port or http://host:port")
        return cls(scheme, f"{host}:{port}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


class Transport(Protocol):
    """Carries one call and blocks until its answer."""

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> tuple[Tensors, str]:
        """Return the outputs by name, and the version of the model that answered."""
        ...

    def close(self) -> None:
        """Let go of the connections."""
        ...


class AsyncTransport(Protocol):
    """Carries one call in asyncio."""

    async def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> tuple[Tensors, str]:
        """Return the outputs by name, and the version of the model that answered."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...


class GrpcTransport:
    """Blocking, over one gRPC channel that threads may share."""

    def __init__(self, endpoint: Endpoint) -> None:
        import tritonclient.grpc as library

        self._endpoint = endpoint
        self._library = library
        self._client = library.InferenceServerClient(endpoint.authority, channel_args=CHANNEL_ARGS)

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> tuple[Tensors, str]:
        """Carry one call."""
        with _typed_errors(self._endpoint, model, timeout_s):
            result = self._client.infer(model, **_request(self._library, inputs, outputs), client_timeout=timeout_s)
        return _arrays(result, outputs), result.get_response().model_version

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class AsyncGrpcTransport:
    """In asyncio, over one gRPC channel."""

    def __init__(self, endpoint: Endpoint) -> None:
        import tritonclient.grpc.aio as library

        self._endpoint = endpoint
        self._library = library
        self._client: Any = None

    async def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> tuple[Tensors, str]:
        """Carry one call."""
        if self._client is None:  # made here because a channel belongs to the running event loop
            self._client = self._library.InferenceServerClient(self._endpoint.authority, channel_args=CHANNEL_ARGS)
        with _typed_errors(self._endpoint, model, timeout_s):
            result = await self._client.infer(
                model, **_request(self._library, inputs, outputs), client_timeout=timeout_s
            )
        return _arrays(result, outputs), result.get_response().model_version

    async def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            await self._client.close()


class HttpTransport:
    """Blocking, over HTTP; each thread has connections of its own, since the stock client may not be shared."""

    def __init__(self, endpoint: Endpoint) -> None:
        import gevent
        import tritonclient.http as library

        self._endpoint = endpoint
        self._library = library
        self._timeout = gevent.Timeout
        self._local = threading.local()

    def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> tuple[Tensors, str]:
        """Carry one call."""
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._library.InferenceServerClient(self._endpoint.authority)
        # The stock client's own time limits are fixed when it connects and count each read by itself. It reads through
        # gevent, whose timer ends the whole call.
        with _typed_errors(self._endpoint, model, timeout_s), self._timeout(timeout_s, TimeoutError):
            try:
                result = client.infer(model, **_request(self._library, inputs, outputs))
            except InferenceServerException:
                raise
            except BaseException:
                # An unread answer may still be on its way: nobody may find it on this connection.
                self.close()
                raise
        return _arrays(result, outputs), result.get_response().get("model_version", "")

    def close(self) -> None:
        """Close the connections of this thread; those of others go with their threads."""
        client = getattr(self._local, "client", None)
        if client is not None:
            client.close()
            self._local.client = None


class AsyncHttpTransport:
    """In asyncio, over HTTP."""

    def __init__(self, endpoint: Endpoint) -> None:
        import tritonclient.http.aio as library

        self._endpoint = endpoint
        self._library = library
        self._client: Any = None

    async def infer(self, model: str, inputs: Tensors, outputs: Sequence[str], timeout_s: float) -> tuple[Tensors, str]:
        """Carry one call."""
        if self._client is None:  # made here because a session belongs to the running event loop
            self._client = self._library.InferenceServerClient(self._endpoint.authority)
        with _typed_errors(self._endpoint, model, timeout_s):
            async with asyncio.timeout(timeout_s):
                result = await self._client.infer(model, **_request(self._library, inputs, outputs))
        return _arrays(result, outputs), result.get_response().get("model_version", "")

    async def close(self) -> None:
        """Close the session."""
        if self._client is not None:
            await self._client.close()


def open_transport(url: str) -> Transport:
    """Return the blocking transport for a URL."""
    endpoint = Endpoint.parse(url)
    return GrpcTransport(endpoint) if endpoint.scheme == "grpc" else HttpTransport(endpoint)


def open_async_transport(url: str) -> AsyncTransport:
    """Return the asyncio transport for a URL."""
    endpoint = Endpoint.parse(url)
    return AsyncGrpcTransport(endpoint) if endpoint.scheme == "grpc" else AsyncHttpTransport(endpoint)


def _request(library: ModuleType, inputs: Tensors, outputs: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of the stock client's `infer`."""
    tensors = []
    for name, array in inputs.items():
        tensor = library.InferInput(name, list(array.shape), DATATYPES[array.dtype])
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return {
        "inputs": tensors,
        "outputs": [library.InferRequestedOutput(name) for name in outputs],
    }


def _arrays(result: Any, outputs: Sequence[str]) -> Tensors:
    return {name: result.as_numpy(name) for name in outputs}


@contextmanager
def _typed_errors(endpoint: Endpoint, model: str, timeout_s: float) -> Iterator[None]:
    """Turn what the stock client and its sockets raise into the errors of this library."""
    try:
        yield
    except TimeoutError:
        raise _deadline(endpoint, timeout_s) from None
    except InferenceServerException as error:
        raise _typed(error, endpoint, model, timeout_s) from None
    except OSError as error:
        raise _unavailable(endpoint, str(error)) from None
    except Exception as error:
        # aiohttp and geventhttpclient have error trees of their own, and neither is imported by a gRPC client.
        if type(error).__module__.partition(".")[0] in ("aiohttp", "geventhttpclient"):
            raise _unavailable(endpoint, f"{type(error).__name__}: {error}") from None
        raise


def _typed(error: InferenceServerException, endpoint: Endpoint, model: str, timeout_s: float) -> ClientError:
    # gRPC states are spelled out ("StatusCode.NOT_FOUND"); HTTP has numbers.
    status = str(error.status() or "").removeprefix("StatusCode.")
    message = error.message() or "no message"
    if status in ("DEADLINE_EXCEEDED", "499") or "timeout expired" in message:
        return _deadline(endpoint, timeout_s)
    if status in ("UNAVAILABLE", "503"):
        return _unavailable(endpoint, message)
    if status in ("NOT_FOUND", "404"):
        return ModelNotFound(f"{endpoint} has no model {model!r}: {message}; is it a fuserec repository?")
    if status in ("INVALID_ARGUMENT", "400"):
        return InvalidRequest(f"{endpoint} refused the call to {model!r}: {message}")
    return ServerFault(f"{endpoint} failed in {model!r} ({status or 'no status'}): {message}; see the server's log")


def _deadline(endpoint: Endpoint, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{endpoint} did not answer within {timeout_s * 1e3:.0f} ms; allow more with timeout_ms, or see its load"
    )


def _unavailable(endpoint: Endpoint, message: str) -> ServerUnavailable:
    return ServerUnavailable(f"{endpoint} is not available: {message}; is `fuserec serve` running there?")
