"""How tensors travel: the stock client over gRPC or HTTP, blocking or in asyncio, with typed errors.

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
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from tritonclient.utils import InferenceServerException

from fuserec.client._policy import Endpoint, Flight, Task, Transport, of_status, run_blocking
from fuserec.client._wire import Answer, Message
from fuserec.errors import ClientError, InvalidRequest

T = TypeVar("T")

# Requests of one batch call that are on their way at once.
IN_FLIGHT = 4
DATATYPES = {
    np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32",
    np.dtype(np.float32): "FP32",
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.object_): "BYTES",
}
CHANNEL_ARGS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # The stock client waits up to two minutes before it tries a lost server again; a backend wants it back at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),  # and how long it waits for a connection
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A peer that vanished without a word is noticed 5 s after something was sent to it (Linux: TCP_USER_TIMEOUT comes
    # with the keepalive). Idle channels are left alone: a server closes one that is pinged more than every 5 minutes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
]


class _Transport(Transport):
    """What all of them share: the stock client's library, and when it may not be used."""

    def __init__(self, endpoints: Sequence[Endpoint], library: ModuleType) -> None:
        self._endpoints, self._names = endpoints, [str(endpoint) for endpoint in endpoints]
        self._library = library
        self._clients: dict[int, Any] = {}
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

    def _request(self, message: Message, timeout_s: float) -> dict[str, Any]:
        """Return the arguments of the stock client's `infer`.

        No outputs are named: a server then returns all it has, which with another version are not always the same.
        """
        inputs = []
        for name, array in message.tensors.items():
            tensor = self._library.InferInput(name, list(array.shape), DATATYPES[array.dtype])
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return {
            "inputs": inputs,
            "headers": dict(message.headers),  # the stock client writes into it
            # Microseconds after which the server's queue drops the request; 0 would stand for its own default.
            "timeout": max(1, int(timeout_s * 1e6)),
        }

    def _typed(self, error: Exception, place: int, message: Message) -> Exception:
        """Return the error of this library for one of the stock client or its sockets; any other as it is."""
        if isinstance(error, ClientError):
            return error
        if self._closed:
            return InvalidRequest("this client was closed during the call")
        if isinstance(error, InferenceServerException):
            # gRPC states are spelled out ("StatusCode.NOT_FOUND"); HTTP has numbers.
            status, said = str(error.status() or "").removeprefix("StatusCode."), error.message() or "no message"
        elif isinstance(error, TimeoutError):
            status, said = "DEADLINE_EXCEEDED", ""
        # aiohttp and geventhttpclient have error trees of their own, and a gRPC client imports neither.
        elif isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("aiohttp", "geventhttpclient"):
            status, said = "UNAVAILABLE", str(error) or type(error).__name__
        else:
            return error
        endpoint = self._names[place]
        typed = of_status(status, said, endpoint=endpoint, model=message.model, total_s=message.total_s)
        typed.endpoint = endpoint
        return typed


class _Blocking(_Transport):
    """Waits by blocking the thread; threads may share one."""

    def __init__(self, endpoints: Sequence[Endpoint], library: ModuleType) -> None:
        super().__init__(endpoints, library)
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def gather(self, tasks: Sequence[Task[T]]) -> list[T]:
        if len(tasks) == 1:
            return [await tasks[0]()]
        with self._lock:
            self.check_usable()
            if self._pool is None:  # kept, because connections over HTTP belong to threads
                self._pool = concurrent.futures.ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fuserec-client")
        return list(self._pool.map(lambda task: run_blocking(task()), tasks))

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


class _Async(_Transport):
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
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()


class _GrpcFlight(concurrent.futures.Future[Answer]):
    """A call in flight: the stock client has a callback, which nobody can wait for."""

    call: Any = None

    def cancel(self) -> bool:
        self.call.cancel()
        return True


class GrpcTransport(_Blocking):
    """Blocking, over a gRPC channel for each endpoint that threads share."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        import tritonclient.grpc as library

        super().__init__(endpoints, library)

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        request = self._request(message, timeout_s)
        try:
            result = self._client(place).infer(message.model, **request, client_timeout=timeout_s)
        except Exception as error:
            raise self._typed(error, place, message) from None
        return _grpc_answer(result, self._names[place])

    def launch(self, place: int, message: Message, timeout_s: float) -> _GrpcFlight:
        flight, request = _GrpcFlight(), self._request(message, timeout_s)

        def land(result: Any, error: Exception | None) -> None:
            if error is None:
                flight.set_result(_grpc_answer(result, self._names[place]))
            else:
                flight.set_exception(self._typed(error, place, message))

        flight.call = self._client(place).async_infer(message.model, callback=land, client_timeout=timeout_s, **request)
        return flight

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> Sequence[Flight]:
        return list(concurrent.futures.wait(flights, timeout_s, concurrent.futures.FIRST_COMPLETED).done)

    async def close(self) -> None:
        await super().close()
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def _client(self, place: int) -> Any:
        client = self._clients.get(place)
        if client is None:
            with self._lock:
                self.check_usable()
                client = self._clients.get(place) or _grpc_client(self._library, self._endpoints[place])
                self._clients[place] = client
        return client


class AsyncGrpcTransport(_Async):
    """In asyncio, over a gRPC channel for each endpoint."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        import tritonclient.grpc.aio as library

        super().__init__(endpoints, library)

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        if place not in self._clients:
            self._clients[place] = _grpc_client(self._library, self._endpoints[place])
        request = self._request(message, timeout_s)
        try:
            result = await self._clients[place].infer(message.model, **request, client_timeout=timeout_s)
        except Exception as error:
            raise self._typed(error, place, message) from None
        return _grpc_answer(result, self._names[place])


class _HttpFlight:
    """A call in flight: a greenlet, since the stock client's sockets are gevent's."""

    def __init__(self, greenlet: Any) -> None:
        self.greenlet = greenlet

    def result(self) -> Answer:
        if isinstance(self.greenlet.value, Exception):
            raise self.greenlet.value
        answer: Answer = self.greenlet.value
        return answer

    def cancel(self) -> None:
        self.greenlet.kill()


class HttpTransport(_Blocking):
    """Blocking, over HTTP; each thread has connections of its own, since the stock client may not be shared."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        import gevent
        import tritonclient.http as library

        super().__init__(endpoints, library)
        self._gevent = gevent
        self._local = threading.local()

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        idle = self._idle(place)
        client = idle.pop() if idle else _http_client(self._library, self._endpoints[place])
        # An unread answer may be on its way after a failure: nobody may find it on this connection.
        whole = False
        try:
            # The stock client's own time limits count each read by itself; gevent's timer ends the whole call.
            with self._gevent.Timeout(timeout_s, TimeoutError):
                result = client.infer(message.model, **self._request(message, timeout_s))
            whole = True
        except Exception as error:
            whole = isinstance(error, InferenceServerException)
            raise self._typed(error, place, message) from None
        finally:
            if whole and not self._closed:
                idle.append(client)
            else:
                client.close()
        return _http_answer(result, self._names[place])

    def launch(self, place: int, message: Message, timeout_s: float) -> _HttpFlight:
        def run() -> Answer | Exception:
            try:
                return run_blocking(self.send(place, message, timeout_s))
            except Exception as error:  # gevent would print what a greenlet raises
                return error

        return _HttpFlight(self._gevent.spawn(run))

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> list[Any]:
        self._gevent.wait([flight.greenlet for flight in flights], timeout_s, count=1)
        return [flight for flight in flights if flight.greenlet.ready()]

    async def close(self) -> None:
        """Close the connections of this thread; those of others go with their threads."""
        await super().close()
        for place in range(len(self._endpoints)):
            while idle := self._idle(place):
                idle.pop().close()

    def _idle(self, place: int) -> list[Any]:
        """Return this thread's connections to an endpoint that nobody uses at the moment."""
        idle: list[Any] = vars(self._local).setdefault(str(place), [])
        return idle


class AsyncHttpTransport(_Async):
    """In asyncio, over HTTP."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        import tritonclient.http.aio as library

        super().__init__(endpoints, library)

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        if place not in self._clients:
            endpoint = self._endpoints[place]
            self._clients[place] = self._library.InferenceServerClient(
                endpoint.authority,
                conn_timeout=None,
                ssl=endpoint.tls is not None,
                ssl_context=endpoint.tls and endpoint.tls.context(),
            )
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._clients[place].infer(message.model, **self._request(message, timeout_s))
        except Exception as error:
            raise self._typed(error, place, message) from None
        return _http_answer(result, self._names[place])


def open_transport(endpoints: Sequence[Endpoint], *, blocking: bool) -> Transport:
    """Return what carries calls to endpoints, which share a protocol."""
    if endpoints[0].scheme == "grpc":
        return GrpcTransport(endpoints) if blocking else AsyncGrpcTransport(endpoints)
    return HttpTransport(endpoints) if blocking else AsyncHttpTransport(endpoints)


def _grpc_client(library: ModuleType, endpoint: Endpoint) -> Any:
    if endpoint.tls is None:
        return library.InferenceServerClient(endpoint.authority, channel_args=CHANNEL_ARGS)
    return library.InferenceServerClient(
        endpoint.authority,
        ssl=True,
        root_certificates=endpoint.tls.ca,
        private_key=endpoint.tls.key,
        certificate_chain=endpoint.tls.certificate,
        channel_args=CHANNEL_ARGS,
    )


def _http_client(library: ModuleType, endpoint: Endpoint) -> Any:
    options: dict[str, Any] = {"connection_timeout": None, "network_timeout": None}
    if endpoint.tls is not None:
        from gevent.ssl import create_default_context

        files = {"ca_certs": endpoint.tls.ca, "certfile": endpoint.tls.certificate, "keyfile": endpoint.tls.key}
        files = {name: str(path) for name, path in files.items() if path is not None}
        options |= {"ssl": True, "ssl_options": files, "ssl_context_factory": create_default_context}
    return library.InferenceServerClient(endpoint.authority, **options)


def _grpc_answer(result: Any, endpoint: str) -> Answer:
    response = result.get_response()
    tensors = {output.name: result.as_numpy(output.name) for output in response.outputs}
    return Answer(tensors, response.model_version, endpoint)


def _http_answer(result: Any, endpoint: str) -> Answer:
    response = result.get_response()
    tensors = {output["name"]: result.as_numpy(output["name"]) for output in response.get("outputs", ())}
    return Answer(tensors, response.get("model_version", ""), endpoint)
