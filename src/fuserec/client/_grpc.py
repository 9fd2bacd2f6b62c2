"""Calls over gRPC, blocking and in asyncio, by the protocol that the stock client brings.

Answers come as bytes from the library of gRPC and are parsed here, so that their size is looked at before.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from fuserec.client._policy import Endpoint, Flight
from fuserec.client._proxy import is_direct
from fuserec.client._tensors import DATATYPES, from_bytes, readable, to_bytes
from fuserec.client._transport import AsyncTransport, BaseTransport, BlockingTransport
from fuserec.client._wire import MOST_ANSWER_BYTES, Answer, Message, Tensors
from fuserec.errors import MalformedAnswer

_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_CHANNEL_OPTIONS: Final = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", MOST_ANSWER_BYTES),
    # No algorithm but "none": a compressed answer is refused, as nothing bounds what it would become.
    ("grpc.compression_enabled_algorithms_bitset", 1),
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


def _request(message: Message, timeout_s: float) -> bytes:
    """Return a call as it is sent.

    No outputs are named: a server then returns all it has, which with another version are not always the same.
    """
    request = service_pb2.ModelInferRequest(model_name=message.model)
    for name, array in message.tensors.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(to_bytes(array))
    # Microseconds after which the server's queue drops the request; 0 would stand for its own default.
    request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
    sent: bytes = request.SerializeToString()
    return sent


def _answer(raw: bytes, message: Message, endpoint: str) -> Answer:
    """Return the tensors of an answer.

    Raises:
        MalformedAnswer: It is no answer to this call.
    """
    if len(raw) > message.most_bytes:
        raise MalformedAnswer(f"it has {len(raw)} bytes, and may have {message.most_bytes} to this call")
    try:
        response = service_pb2.ModelInferResponse.FromString(raw)
    except DecodeError as error:
        raise MalformedAnswer(f"it is no message of this service: {readable(str(error))}") from None
    contents = response.raw_output_contents
    if len(contents) != len(response.outputs):
        raise MalformedAnswer(f"it has {len(response.outputs)} outputs and the content of {len(contents)}")
    tensors: Tensors = {}
    for output, content in zip(response.outputs, contents, strict=True):
        if output.name in tensors:
            raise MalformedAnswer(f"it has {readable(output.name)!r} twice")
        array = from_bytes(output.name, output.datatype, tuple(output.shape), content)
        if array is not None:
            tensors[output.name] = array
    return Answer(tensors, response.model_version, endpoint)


class _Grpc(BaseTransport):
    """What both share."""

    _library: Any = grpc

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        super().__init__(endpoints)
        self._channels: dict[int, Any] = {}
        self._calls: dict[int, Any] = {}

    def _open(self, place: int) -> Any:
        """Return what makes calls to an endpoint; bytes go in and out."""
        endpoint = self._endpoints[place]
        options = list(_CHANNEL_OPTIONS)
        if is_direct(endpoint.host):
            options.append(("grpc.enable_http_proxy", 0))
        if endpoint.tls is None:
            channel = self._library.insecure_channel(endpoint.authority, options)
        else:
            files = (endpoint.tls.ca, endpoint.tls.key, endpoint.tls.certificate)
            credentials = grpc.ssl_channel_credentials(*(path and Path(path).read_bytes() for path in files))
            channel = self._library.secure_channel(endpoint.authority, credentials, options)
        self._channels[place] = channel
        self._calls[place] = channel.unary_unary(_METHOD)
        return self._calls[place]

    def _state_of(self, error: Exception) -> tuple[str, str] | None:
        if isinstance(error, grpc.RpcError):
            return error.code().name, error.details() or "no message"
        return super()._state_of(error)


class _GrpcFlight(concurrent.futures.Future[Answer]):
    """A call in flight, in a form that can be waited for together with others."""

    call: Any = None

    def cancel(self) -> bool:
        self.call.cancel()
        return True


class GrpcTransport(_Grpc, BlockingTransport):
    """Blocking, over a channel for each endpoint that threads share."""

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        try:
            raw = self._call_of(place)(
                _request(message, timeout_s), timeout=timeout_s, metadata=tuple(message.headers.items())
            )
            return _answer(raw, message, self._names[place])
        except Exception as error:
            raise self._typed(error, place, message) from None

    def launch(self, place: int, message: Message, timeout_s: float) -> _GrpcFlight:
        flight = _GrpcFlight()

        def land(call: Any) -> None:
            try:
                flight.set_result(_answer(call.result(), message, self._names[place]))
            except Exception as error:
                flight.set_exception(self._typed(error, place, message))

        try:
            flight.call = self._call_of(place).future(
                _request(message, timeout_s), timeout=timeout_s, metadata=tuple(message.headers.items())
            )
        except Exception as error:
            raise self._typed(error, place, message) from None
        flight.call.add_done_callback(land)
        return flight

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> Sequence[Flight]:
        return list(concurrent.futures.wait(flights, timeout_s, concurrent.futures.FIRST_COMPLETED).done)

    async def close(self) -> None:
        await super().close()
        channels, self._channels, self._calls = self._channels, {}, {}
        for channel in channels.values():
            channel.close()

    def _call_of(self, place: int) -> Any:
        call = self._calls.get(place)
        if call is None:
            with self._lock:
                self.check_usable()
                call = self._calls.get(place) or self._open(place)
        return call


class AsyncGrpcTransport(_Grpc, AsyncTransport):
    """In asyncio, over a channel for each endpoint."""

    _library = grpc.aio

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        try:
            call = self._calls.get(place) or self._open(place)
            raw = await call(_request(message, timeout_s), timeout=timeout_s, metadata=tuple(message.headers.items()))
            return _answer(raw, message, self._names[place])
        except Exception as error:
            raise self._typed(error, place, message) from None

    async def close(self) -> None:
        await super().close()
        channels, self._channels, self._calls = self._channels, {}, {}
        for channel in channels.values():
            await channel.close()
