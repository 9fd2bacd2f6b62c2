"""HTTP/1.1 as far as one call needs it, apart from any socket: the bytes of a request, and a reader of its answer.

Everything is bounded before it is kept, decompressed or parsed. A redirect is not followed: no server of ours sends
one, and it would take a user's history and the token to an address that the caller did not give.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

from numpy.typing import NDArray

from fuserec.client._tensors import DATATYPES, from_bytes, from_numbers, readable, to_bytes
from fuserec.client._wire import Answer, Message, Tensors
from fuserec.errors import MalformedAnswer

_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_INTERIM: Final = 8
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_DIGITS: Final = re.compile("[0-9]{1,18}")
_HTTP: Final = b"HTTP/1."
_MAX_LINE_BYTES: Final = 4096
_ONCE: Final = ("content-length", "content-encoding", "transfer-encoding", "inference-header-content-length")
_JSON_LENGTH: Final = "Inference-Header-Content-Length"


def request_bytes(
    message: Message, timeout_s: float, host: str, prefix: str = "", extra: Mapping[str, str] | None = None
) -> bytes:
    """Return a call as HTTP/1.1 sends it; `prefix` is `http://host` where a proxy is to forward it, `extra` for it.

    No outputs are named: a server then returns all it has, which with another version are not always the same.
    """
    inputs, raws = [], []
    for name, array in message.tensors.items():
        raws.append(to_bytes(array))
        described = {"name": name, "shape": array.shape, "datatype": DATATYPES[array.dtype]}
        inputs.append(described | {"parameters": {"binary_data_size": len(raws[-1])}})
    # Microseconds after which the server's queue drops the request; 0 would stand for its own default.
    asked = {"timeout": max(1, int(timeout_s * 1e6)), "binary_data_output": True}
    document = json.dumps({"inputs": inputs, "parameters": asked}).encode()
    lines = [
        f"POST {prefix}/v2/models/{message.model}/infer HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/octet-stream",
        "Accept-Encoding: identity",
        f"{_JSON_LENGTH}: {len(document)}",
        f"Content-Length: {len(document) + sum(map(len, raws))}",
        *(f"{name}: {value}" for name, value in {**message.headers, **(extra or {})}.items()),
    ]
    return b"".join(["\r\n".join([*lines, "", ""]).encode(), document, *raws])


class Reader:
    """Reads one answer from pieces of what a connection brings.

    Args:
        limit: Bytes that its body may have, as it travels and decompressed.

    Attributes:
        status: Its status, once it is known.
        headers: Its fields by lower-case name.
        is_whole: Whether all of it came.
        began: Whether anything came.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer, self._body = bytearray(), bytearray()
        self._ended = self._keeps_alive = False
        self.is_whole = self.began = False
        self.status = 0
        self.headers: dict[str, str] = {}
        self._steps = self._read()
        next(self._steps)

    @property
    def can_be_reused(self) -> bool:
        """Whether the connection is ready for another request."""
        return self.is_whole and self._keeps_alive and not self._buffer

    def feed(self, data: bytes) -> None:
        """Take what came, nothing for the end of the connection.

        Raises:
            MalformedAnswer: It is no HTTP, is too long, or ended too early.
        """
        self._buffer += data
        self.began |= bool(data)
        self._ended = not data
        try:
            next(self._steps)
        except StopIteration:
            self.is_whole = True
            return
        if self._ended:
            raise MalformedAnswer("the connection ended in the middle of an answer")

    def body(self) -> bytes:
        """Return the body, decompressed.

        Raises:
            MalformedAnswer: It cannot be decompressed, or is too long.
        """
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding in ("identity", ""):
            return bytes(self._body)
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise MalformedAnswer(f"it is encoded as {readable(encoding)!r}, which was not asked for")
        inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either of the two, by its header
        try:
            plain = inflater.decompress(self._body, self._limit + 1)
        except zlib.error as error:
            raise MalformedAnswer(f"it cannot be decompressed: {error}") from None
        self._require(len(plain))
        if not inflater.eof:
            raise MalformedAnswer("its compressed body is cut off")
        return plain

    def _require(self, size: int) -> None:
        if size > self._limit:
            raise MalformedAnswer(f"it has more than the {self._limit} bytes that an answer to this call may have")

    def _read(self) -> Iterator[None]:
        """Read on as far as the buffer goes, and yield where more is needed."""
        yield
        for _ in range(_MAX_INTERIM):
            version, lines = yield from self._head()
            if self.status >= 200:
                break
        if self.status < 200:
            raise MalformedAnswer(f"it says {self.status} and does not answer")
        self.headers = _fields(lines)
        says = self.headers.get("connection", "").lower()
        self._keeps_alive = says != "close" if version == b"1" else says == "keep-alive"
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if self.status in (204, 304):
            return
        if coding is not None:
            if coding.lower() != "chunked" or length is not None:
                raise MalformedAnswer(f"it has transfer-encoding {readable(coding)!r}, content-length {length!r}")
            yield from self._chunks()
        elif length is not None:
            if not _DIGITS.fullmatch(length):
                raise MalformedAnswer(f"it has content-length {readable(length)!r}")
            self._require(int(length))
            yield from self._take(int(length))
        else:
            self._keeps_alive = False
            while not self._ended:
                self._require(len(self._buffer))
                yield
            self._require(len(self._buffer))
            self._body, self._buffer = self._buffer, bytearray()

    def _head(self) -> Generator[None, None, tuple[bytes, list[bytes]]]:
        """Read a head; return the minor version of HTTP and the lines of its fields."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            begin = bytes(self._buffer[: len(_HTTP)])
            if len(self._buffer) > _MAX_HEAD_BYTES or not _HTTP.startswith(begin):
                raise MalformedAnswer(f"it is no HTTP, it begins with {begin!r}; is it the port of gRPC?")
            yield
        first, *lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        found = _STATUS.fullmatch(first)
        if found is None or end > _MAX_HEAD_BYTES:
            raise MalformedAnswer(f"it is no HTTP, it begins with {first[:40]!r}")
        self.status = int(found[2])
        return found[1], lines

    def _chunks(self) -> Iterator[None]:
        while True:
            size = int(_match(_CHUNK, (yield from self._line())), 16)
            if not size:
                break
            self._require(len(self._body) + size)
            yield from self._take(size)
            if (yield from self._line()):
                raise MalformedAnswer("a chunk of it is longer than it says")
        read = 0
        while line := (yield from self._line()):
            read += len(line)
            if read > _MAX_HEAD_BYTES:
                raise MalformedAnswer("it has no end of trailers")

    def _line(self) -> Generator[None, None, bytes]:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MAX_LINE_BYTES:
                raise MalformedAnswer("a line between its chunks has no end")
            yield
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _take(self, size: int) -> Iterator[None]:
        """Move so many bytes to the body."""
        while size:
            piece = self._buffer[:size]
            self._body += piece
            del self._buffer[: len(piece)]
            size -= len(piece)
            if size:
                yield


def answer_of(reader: Reader, endpoint: str) -> Answer:
    """Return the tensors of a whole answer of status 200.

    Raises:
        MalformedAnswer: It is none of the KServe protocol.
    """
    body = reader.body()
    length = reader.headers.get(_JSON_LENGTH.lower())
    if length is not None and (not _DIGITS.fullmatch(length) or int(length) > len(body)):
        raise MalformedAnswer(f"it has {readable(_JSON_LENGTH)} {readable(length)!r} and {len(body)} bytes")
    end = len(body) if length is None else int(length)
    document = parsed(body[:end])
    outputs, version = document.get("outputs"), document.get("model_version", "")
    if not isinstance(outputs, list) or not isinstance(version, str):
        raise MalformedAnswer("it has no outputs; is it a fuserec server?")
    tensors: Tensors = {}
    for output in outputs:
        name, array, end = _output(output, body, end)
        if name in tensors:
            raise MalformedAnswer(f"it has {readable(name)!r} twice")
        if array is not None:
            tensors[name] = array
    if end != len(body):
        raise MalformedAnswer(f"it has {len(body) - end} bytes more than its outputs")
    return Answer(tensors, version, endpoint)


def _output(output: Any, body: bytes, begin: int) -> tuple[str, NDArray[Any] | None, int]:
    """Return name and value of an output, and where in the body the next one begins."""
    if not isinstance(output, dict):
        raise MalformedAnswer("one of its outputs is no object")
    name, datatype, shape = output.get("name"), output.get("datatype"), output.get("shape")
    parameters = output.get("parameters", {})
    if not (isinstance(name, str) and isinstance(datatype, str) and isinstance(shape, list)):
        raise MalformedAnswer("one of its outputs lacks name, datatype or shape")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return name, from_numbers(name, datatype, shape, output.get("data")), begin
    if type(size) is not int or not 0 <= size <= len(body) - begin:
        raise MalformedAnswer(f"{readable(name)!r} came with binary_data_size {readable(str(size)[:40])}")
    return name, from_bytes(name, datatype, shape, body[begin : begin + size]), begin + size


def parsed(text: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        MalformedAnswer: It is none.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer(f"it is no JSON ({readable(str(error))}); is it a fuserec server?") from None
    if not isinstance(document, dict):
        raise MalformedAnswer("it is no JSON object; is it a fuserec server?")
    return document


def error_of(reader: Reader) -> str | None:
    """Return what an answer of another status says, None where it is not said as Triton does."""
    try:
        document = parsed(reader.body())
    except MalformedAnswer:
        return None
    said = document.get("error")
    return said if isinstance(said, str) else None


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        before, colon, after = line.partition(b":")
        if not colon or not _NAME.fullmatch(before):
            raise MalformedAnswer(f"it has a header {line[:40]!r}")
        name, value = before.decode("ascii").lower(), after.decode("latin-1").strip(" \t")
        if name in fields and name in _ONCE and fields[name] != value:
            raise MalformedAnswer(f"it has {name!r} twice")
        fields[name] = value
    return fields


def _match(pattern: re.Pattern[bytes], line: bytes) -> bytes:
    found = pattern.fullmatch(line)
    if found is None:
        raise MalformedAnswer(f"it has a chunk of size {line[:20]!r}")
    return found[1]
