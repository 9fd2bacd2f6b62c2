"""The load is what it says: who asks, when calls are sent, and from when their latency counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tritonclient.grpc import service_pb2

from bench.serving import processes
from bench.serving.callers import CallFailed, HttpPool
from bench.serving.clock import Alarm
from bench.serving.contenders import _agree
from bench.serving.generator import Generator
from bench.serving.load import Load
from bench.serving.soak import slope
from bench.serving.targets import targets
from bench.serving.workload import Call, Workload, read_bodies, write_bodies

USERS = pl.DataFrame({"user_id": list(range(10, 110)), "history": [list(range(u, u + 3 * u)) for u in range(100)]})


def test_calls_are_skewed_ragged_and_real() -> None:
    calls = Workload(calls=4_000).draw(USERS)
    assert calls == Workload(calls=4_000).draw(USERS)
    assert calls != Workload(calls=4_000, seed=1).draw(USERS)
    often = [count for _, count in Counter(call.user_id for call in calls).most_common()]
    # By Zipf's law over 100 users the first has 19 % and the second half as much.
    assert 0.15 < often[0] / 4_000 < 0.24 and often[0] > 1.5 * often[1]
    histories = dict(zip(USERS["user_id"], USERS["history"].to_list(), strict=True))
    for call in calls:
        assert list(call.history) == histories[call.user_id][: len(call.history)]
    lengths = np.array([len(call.history) for call in calls])
    assert lengths.max() == 200 and 0.4 < (lengths == 0).mean() < 0.65


def test_bytes_of_a_call(tmp_path: Path) -> None:
    calls = [Call(7, ()), Call(8, (3, 4))]
    write_bodies(tmp_path / "bodies", [call.grpc("recommend") for call in calls])
    for call, body in zip(calls, read_bodies(tmp_path / "bodies"), strict=True):
        request = service_pb2.ModelInferRequest.FromString(body)
        raw = {one.name: data for one, data in zip(request.inputs, request.raw_input_contents, strict=True)}
        assert np.frombuffer(raw["user_id"], np.int64).tolist() == [call.user_id]
        assert np.frombuffer(raw["history"], np.int64).tolist() == list(call.history)
    assert b'{"user_id":7,"k":10}' in calls[0].rival()
    assert b'"name":"history","datatype":"INT64","shape":[1,2],"data":[3,4]' in calls[1].http("recommend")


@contextlib.contextmanager
def stub(answer: bytes, *, stall_s: float = 0.0) -> Iterator[int]:
    """Run an HTTP server that answers everything alike, in two pieces; after 0.3 s it may stand still once."""
    port, stall_at = 0, float("inf")
    ready, stop = threading.Event(), threading.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal stall_at, stall_s
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n{}")
                if stall_at == float("inf"):
                    stall_at = time.monotonic() + 0.3
                if stall_s and time.monotonic() > stall_at:
                    time.sleep(stall_s)  # all connections wait
                    stall_s = 0.0
                for piece in (answer[: len(answer) // 2], answer[len(answer) // 2 :]):
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    async def serve() -> None:
        nonlocal port
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield port
    finally:
        stop.set()
        thread.join(10)


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
REQUEST = b"POST / HTTP/1.1\r\n\r\n{}"


@pytest.mark.parametrize("how", [{"concurrency": 1}, {"rate": 200.0}], ids=["closed", "open"])
def test_waiting_behind_a_stall_counts(tmp_path: Path, how: dict[str, float]) -> None:
    """A closed loop of one sends nothing while the server stands still; an open one has calls due all the while."""
    write_bodies(tmp_path / "bodies", [REQUEST])
    with stub(GOOD, stall_s=0.4) as port, Generator() as generator:
        load = Load("http", port, str(tmp_path / "bodies"), os.getpid(), seconds=1.0, warm_s=0.02, **how)
        outcome = generator.run(load)
    assert outcome.errors == {} and outcome.answered > 100
    assert 350 < outcome.max_ms < 2_000
    if "rate" in how:
        assert outcome.p90_ms > 100, "calls that were due in the stall waited for its end"
        assert outcome.answered == pytest.approx(200, rel=0.4)
    else:
        assert outcome.p90_ms < 100, "one call of many met the stall"
    assert 0 < outcome.generator_cores < 2 and outcome.server_cores > 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno", "HTTP 503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nhalf", "timeout"),
    ],
)
def test_failed_calls_are_errors(tmp_path: Path, answer: bytes, reason: str) -> None:
    write_bodies(tmp_path / "bodies", [REQUEST])
    with stub(answer) as port, Generator() as generator:
        load = Load("http", port, str(tmp_path / "bodies"), os.getpid(), 0.3, concurrency=2, warm_s=0.0, timeout_s=0.1)
        outcome = generator.run(load)
    assert outcome.answered == 0 and set(outcome.errors) == {reason}


def test_refused_connection_is_an_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

        async def call() -> None:
            await HttpPool(port, 1.0).call(REQUEST)

        with pytest.raises(CallFailed, match="ConnectionRefusedError"):
            asyncio.run(call())


def test_alarm_never_rings_early() -> None:
    async def late() -> list[float]:
        found = []
        with Alarm() as alarm:
            for wait_s in (0.0, 0.0003, 0.0021, 0.0007):
                moment = time.monotonic() + wait_s
                await alarm.until(moment)
                found.append(time.monotonic() - moment)
        return found

    times = asyncio.run(late())
    assert min(times) >= 0 and max(times) < 0.5


def test_own_processes_are_counted() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        assert {os.getpid(), child.pid} <= set(processes.tree(os.getpid()))
        assert processes.cpu_seconds([child.pid]) > 0
        resident, own = processes.resident_bytes(child.pid)
        assert resident > own > 0
        assert processes.name(child.pid).startswith("python")
    finally:
        child.kill()
        child.wait()
    assert processes.tree(child.pid) == [] and processes.resident_bytes(child.pid) == (0, 0)


@pytest.mark.parametrize(
    ("ids", "scores", "agree"),
    [
        ([1, 2, 3], [0.9, 0.5, 0.4], True),
        ([1, 3, 2], [0.9, 0.5, 0.4], False),
        ([1, 2, 4], [0.9, 0.5, 0.400001], True),
        ([1, 2, 3], [0.9, 0.5, 0.3], False),
        ([1, 2], [0.9, 0.5], False),
        ([4, 2, 3], [0.9, 0.5, 0.4], False),
    ],
    ids=["same", "order", "last ties with another", "score", "shorter", "another first"],
)
def test_answers_agree(ids: list[int], scores: list[float], agree: bool) -> None:
    mine = np.array([1, 2, 3]), np.array([0.9, 0.5, 0.4], np.float32)
    assert _agree(*mine, np.array(ids), np.array(scores, np.float32)) == agree


def test_slope_of_memory() -> None:
    seconds = np.arange(0.0, 600.0, 10.0)
    rising = slope("rising", seconds, 100.0 + seconds / 3600 * 120)
    assert rising.mib_h == pytest.approx(120) and rising.error_mib_h < 1e-6 and not rising.is_zero
    noise = np.random.default_rng(0).standard_normal(len(seconds)) * 30
    noisy = slope("noisy", seconds, 100.0 + noise)
    fit, covariance = np.polyfit(seconds / 3600, 100.0 + noise, 1, cov=True)
    assert noisy.mib_h == pytest.approx(fit[0]) and noisy.error_mib_h == pytest.approx(covariance[0, 0] ** 0.5)
    assert noisy.is_zero
    with pytest.raises(ValueError, match="2 samples came, expected at least 3"):
        slope("short", seconds[:2], seconds[:2])


def test_targets_are_ratios_of_medians() -> None:
    def row(catalogue: str, contender: str, qps: float, p50_ms: float, **more: object) -> dict[str, object]:
        base = {"catalogue": catalogue, "contender": contender, "load": "closed", "concurrency": 1, "share_pct": None}
        return base | {"qps": qps, "p50_ms": p50_ms, "p99_ms": 2 * p50_ms} | more

    rows = [
        row("small", "fuserec", 400, 2.4),
        row("small", "fuserec", 1_000, 9, concurrency=8),
        row("small", "no-op", 1_000, 1.0),
        row("small", "rival 2x1", 800, 1.1),
        row("large", "fuserec", 200, 3.0),
        row("large", "rival 2x1", 50, 30.0),
        row("large", "fuserec", 140, 3.0, load="open", concurrency=None, share_pct=70, p99_ms=12.0),
        row("large", "fuserec", 180, 3.0, load="open", concurrency=None, share_pct=90, p99_ms=99.0),
    ]
    found = [(target.what.split(",")[0], round(target.ratio, 3), target.is_met) for target in targets(rows)]
    assert found == [
        ("small: p50 at concurrency 1", 2.4, False),
        ("small: saturated throughput", 1.25, True),
        ("large: saturated throughput", 4.0, True),
        ("large: p99 at 70 % of saturation", 4.0, True),
    ]
