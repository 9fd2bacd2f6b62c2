"""A caller's `traceparent` is the parent of the server's span, and is in the log of what was slow."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fuserec.client import Recommender
from fuserec.serve.launcher import Address, Server
from fuserec.serve.observing import Observing

pytestmark = pytest.mark.serving
TRACES = {"grpc": "0af7651916cd43dd8448eb211c80319c", "http": "4bf92f3577b34da6a3ce929d0e0e4736"}
PARENT = "b7ad6b7169203331"


@dataclass
class Collector:
    """Takes traces over OTLP/HTTP; server 2.51 sends them as JSON."""

    port: int
    spans: list[dict[str, Any]] = field(default_factory=list)

    def wait_for(self, trace: str, name: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while not (found := [span for span in self.spans if (span["traceId"], span["name"]) == (trace, name)]):
            assert time.monotonic() < deadline, f"no span {name} of {trace}, but {self.spans}"
            time.sleep(0.1)
        return found[0]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/traces"
            for resource in document["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    taken.spans.extend(scope["spans"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taken = Collector(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield taken
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(repository: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that sends its traces to the collector and finds everything slow."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("traced") / "repository"))
    observing = Observing(log_format="json", slow_ms=1e-6, otlp=f"http://127.0.0.1:{collector.port}/v1/traces")
    with Server(copy, address=Address.free(), observing=observing) as server:
        yield server


@pytest.mark.parametrize("protocol", TRACES)
def test_caller_is_the_parent(traced: Server, collector: Collector, protocol: str) -> None:
    trace = TRACES[protocol]
    with Recommender(f"{protocol}://127.0.0.1:{traced.address.ports[protocol]}", timeout_ms=10_000) as client:
        client.recommend(user_id=5, k=3, traceparent=f"00-{trace}-{PARENT}-01")
    request = collector.wait_for(trace, "InferRequest")
    assert request["parentSpanId"] == PARENT
    model = collector.wait_for(trace, "recommend")
    assert model["parentSpanId"] == request["spanId"]
    assert collector.wait_for(trace, "compute")["parentSpanId"] == model["spanId"]


def test_slow_execution_is_logged_with_its_trace(traced: Server) -> None:
    trace = "5" * 32
    with Recommender(f"127.0.0.1:{traced.address.grpc_port}", timeout_ms=10_000) as client:
        client.recommend(user_id=5, k=3, traceparent=f"00-{trace}-{PARENT}-01")
    deadline = time.monotonic() + 30
    while not (lines := [line for line in traced.log.read_text().splitlines() if trace in line]):
        assert time.monotonic() < deadline, "nothing of the trace in the log"
        time.sleep(0.1)
    document = json.loads(lines[0])
    assert document["level"] == "WARNING" and document["message"] == "a slow execution"
    assert (document["model"], document["version"], document["rows"]) == ("recommend", 1, 1)
    assert trace in document["trace_ids"]
    assert 0 < document["stages_ms"]["search"] < document["stages_ms"]["total"]
