"""Real second processes that answer with whatever bytes they were given, over HTTP or gRPC.

    python -m tests.client.hostile http|grpc FILE

The first line of its output is the port. FILE holds the answer, as bytes: over HTTP all that the connection brings,
over gRPC the message. A file that ends in `.zeros` holds a number, and the answer is so many zeros, compressed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

PARTS = 1 << 20


@contextlib.contextmanager
def answering(scheme: str, file: Path) -> Iterator[str]:
    """Run such a process; yield its URL."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.client.hostile", scheme, str(file)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as process:
        assert process.stdout is not None
        try:
            yield f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def gzipped_zeros(count: int) -> Iterator[bytes]:
    """Yield gzip of zeros: a thousandth of them in bytes."""
    packer = zlib.compressobj(9, wbits=31)
    for begin in range(0, count, PARTS):
        yield packer.compress(bytes(min(PARTS, count - begin)))
    yield packer.flush()


def say(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def serve_http(file: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    say(listener.getsockname()[1])
    bomb = b"".join(gzipped_zeros(int(file.read_text()))) if file.suffix == ".zeros" else None

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = b""
            while b"\r\n\r\n" not in request:
                if not (piece := connection.recv(65536)):
                    return
                request += piece
            if bomb is None:
                connection.sendall(file.read_bytes())
            else:
                head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
                connection.sendall(head.encode() + bomb)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    while True:
        threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()


def serve_grpc(file: Path) -> None:
    import concurrent.futures

    import grpc

    class Any_(grpc.GenericRpcHandler):
        def service(self, details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: content())

    def content() -> bytes:
        return bytes(int(file.read_text())) if file.suffix == ".zeros" else file.read_bytes()

    options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", 2**31 - 1)]
    compression = grpc.Compression.Gzip if file.suffix == ".zeros" else None
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(8), options=options, compression=compression, handlers=[Any_()]
    )
    say(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    {"http": serve_http, "grpc": serve_grpc}[sys.argv[1]](Path(sys.argv[2]))
