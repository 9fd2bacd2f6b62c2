"""Small servers that speak Triton's protocol over gRPC and HTTP and behave as a test tells them to."""

from __future__ import annotations

import concurrent.futures
import http.server
import json
import math
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

schemes = pytest.mark.parametrize("scheme", ["grpc", "http"])
clients = pytest.mark.parametrize("client", ["sync", "async"])

HTTP_STATUS = {"UNAVAILABLE": 503, "INTERNAL": 500, "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "NOT_FOUND": 404}


class Refusal(Exception):
    """Makes a server answer with an error."""

    def __init__(self, status: str, message: str = "on purpose") -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Seen:
    """A request as it arrived."""

    model: str
    tensors: dict[str, np.ndarray]
    headers: dict[str, str]
    timeout_us: int
    has_left: Callable[[], bool] = lambda: False
    cancelled: bool = False


@dataclass
class FakeServer:
    """What both servers share: the answer to `recommend` tells which user asked, and which server answered."""

    version: int = 1
    behave: Callable[[Seen], None] = lambda seen: None
    seen: list[Seen] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    port: int = 0

    def answer(self, seen: Seen) -> dict[str, np.ndarray]:
        """Return outputs by name; rank i is the item 1000 * user + i."""
        self.seen.append(seen)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.behave(seen)
        finally:
            self.at_once -= 1
        users, k = seen.tensors["user_id"], int(seen.tensors["k"].max())
        rows = len(users)
        return {
            "item_ids": 1000 * users + np.arange(k),
            "scores": np.tile(np.linspace(1, 0, k, dtype=np.float32), (rows, 1)),
            "fallback": np.zeros((rows, 1), bool),
            "ignored": np.zeros((rows, 1), np.int32),
            "version": np.full((rows, 1), self.version),
        }


def linger(seconds: float) -> Callable[[Seen], None]:
    """Return what keeps a caller waiting, until it leaves."""

    def behave(seen: Seen) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if seen.has_left():
                seen.cancelled = True
                return
            time.sleep(0.002)

    return behave


def refuse(status: str, times: float = math.inf, message: str = "on purpose") -> Callable[[Seen], None]:
    """Return what answers with an error, so many times."""
    left = [times]

    def behave(seen: Seen) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise Refusal(status, message)

    return behave


@dataclass(frozen=True)
class Certificates:
    """A server's and a client's certificate, and the CA that signed both."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def pair(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        """Sign certificates for 127.0.0.1."""

        def openssl(*arguments: str) -> None:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA")
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        for name in ("server", "client"):
            openssl("req", "-new", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
            openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signing)
        return cls(folder)


class GrpcServer(FakeServer, service_pb2_grpc.GRPCInferenceServiceServicer):
    scheme = "grpc"

    def start(self, certificates: Certificates | None = None) -> None:
        pool = concurrent.futures.ThreadPoolExecutor(16)
        self._server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{self.port}"
        if certificates is None:
            self.port = self._server.add_insecure_port(address)
        else:
            certificate, key = certificates.pair("server")
            pairs = ((key.read_bytes(), certificate.read_bytes()),)
            credentials = grpc.ssl_server_credentials(pairs, certificates.ca.read_bytes(), require_client_auth=True)
            self.port = self._server.add_secure_port(address, credentials)
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        tensors = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            tensors[tensor.name] = _array(raw, tensor.datatype, tensor.shape)
        headers = dict(context.invocation_metadata())
        timeout_us = request.parameters["timeout"].int64_param
        seen = Seen(request.model_name, tensors, headers, timeout_us, lambda: not context.is_active())
        try:
            outputs = self.answer(seen)
        except Refusal as refusal:
            context.abort(grpc.StatusCode[refusal.status], str(refusal))
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="9")
        for name, array in outputs.items():
            response.outputs.add(name=name, datatype=_datatype(array), shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response


class HttpServer(FakeServer):
    scheme = "http"

    def start(self, certificates: Certificates | None = None) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *arguments: object) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                length = int(self.headers["Inference-Header-Content-Length"])
                document, body = json.loads(body[:length]), body[length:]
                tensors = {}
                for tensor in document["inputs"]:
                    size = tensor["parameters"]["binary_data_size"]
                    tensors[tensor["name"]] = _array(body[:size], tensor["datatype"], tensor["shape"])
                    body = body[size:]
                headers = {name.lower(): value for name, value in self.headers.items()}
                model = self.path.split("/")[3]
                seen = Seen(model, tensors, headers, document["parameters"]["timeout"], self.has_left)
                try:
                    outputs = outer.answer(seen)
                except Refusal as refusal:
                    return self.reply(HTTP_STATUS[refusal.status], {"error": str(refusal)})
                described = [
                    {"name": name, "datatype": _datatype(array), "shape": array.shape, "data": array.ravel().tolist()}
                    for name, array in outputs.items()
                ]
                return self.reply(200, {"model_name": model, "model_version": "9", "outputs": described})

            def has_left(self) -> bool:
                readable, _, _ = select.select([self.connection], [], [], 0)
                return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

            def reply(self, status: int, document: dict[str, Any]) -> None:
                body = json.dumps(document).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True  # the caller has left

        class Listener(http.server.ThreadingHTTPServer):
            request_queue_size = 64

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                outer._connections.append(connection)
                return connection, address

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._connections: list[socket.socket] = []
        self._server = Listener(("127.0.0.1", self.port), Handler)
        if certificates is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
            context.load_cert_chain(*certificates.pair("server"))
            context.verify_mode = ssl.CERT_REQUIRED
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        self._server.server_close()
        self._thread.join()


SERVERS: dict[str, type[GrpcServer] | type[HttpServer]] = {"grpc": GrpcServer, "http": HttpServer}


@contextmanager
def serving(scheme: str, count: int = 1, certificates: Certificates | None = None) -> Iterator[list[Any]]:
    """Run servers that are told apart by their version, 1 to `count`."""
    servers = [SERVERS[scheme](version=place + 1) for place in range(count)]
    for server in servers:
        server.start(certificates)
    try:
        yield servers
    finally:
        for server in servers:
            server.behave = lambda seen: None
            server.stop()


def urls(servers: list[Any]) -> list[str]:
    return [f"{server.scheme}://127.0.0.1:{server.port}" for server in servers]


class Asking:
    """Either client behind blocking calls, so that one test can be about both."""

    def __init__(self, client: str, endpoints: str | list[str], **options: Any) -> None:
        import asyncio

        from fuserec.client import AsyncRecommender, Recommender

        self._runner = asyncio.Runner() if client == "async" else None
        self.client: Any = (AsyncRecommender if self._runner else Recommender)(endpoints, **options)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            result = getattr(self.client, name)(*arguments, **named)
            return self._runner.run(result) if self._runner else result

        return call

    def __enter__(self) -> Asking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._runner:
            self._runner.close()


def _array(raw: bytes, datatype: str, shape: Any) -> np.ndarray:
    if datatype == "BYTES":
        return deserialize_bytes_tensor(raw).reshape(list(shape))
    return np.frombuffer(raw, triton_to_np_dtype(datatype)).reshape(list(shape))


def _datatype(array: np.ndarray) -> str:
    return {"int64": "INT64", "int32": "INT32", "float32": "FP32", "bool": "BOOL"}[array.dtype.name]
