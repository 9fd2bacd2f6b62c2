"""Promises 14 to 18: more than can be done, too late to be done, and no longer wanted."""

from __future__ import annotations

import concurrent.futures
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench._raw import GRPC, INFER, Reply, http_request
from fuserec.client import DeadlineExceeded, Recommender, ServerOverloaded
from fuserec.serve.launcher import Server
from fuserec.serve.settings import ServingConfig
from tests.serving.promises.conftest import QUEUE_SIZE, QUEUE_TIMEOUT_MS, Busy
from tests.serving.promises.raw import INFER_PATH, document, executed, items, message, post, send_grpc
from tests.waiting import wait_until

pytestmark = pytest.mark.serving
MANY = 4 * QUEUE_SIZE


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(MANY + 8) as pool:
        yield pool


def overload(busy: Busy, pool: concurrent.futures.ThreadPoolExecutor) -> list[tuple[Reply, float]]:
    """Send more than the queue holds; return the replies that came at once, with the seconds that each took."""

    def timed() -> tuple[Reply, float]:
        begin = time.monotonic()
        reply = send_grpc(busy.server, message())
        return reply, time.monotonic() - begin

    with busy.at_work():
        asked = [pool.submit(timed) for _ in range(MANY)]
        wait_until(lambda: busy.waiting() >= QUEUE_SIZE, "a full queue")
        expected = MANY - (QUEUE_SIZE - 1)  # one that waits was there before
        wait_until(lambda: sum(each.done() for each in asked) >= expected, f"{expected} refusals")
        shed = [each.result() for each in asked if each.done()]
        assert len(shed) == expected
    for each in asked:
        assert each.result()[0].status in ("OK", "UNAVAILABLE"), each.result()
    return shed


def test_promise_14_overload_is_shed_promptly(busy: Busy, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    for reply, took_s in overload(busy, pool):
        assert reply.status == "UNAVAILABLE" and "maximum queue size" in str(reply.error), reply
        assert took_s < 0.5, f"refused after {took_s:.1f} s"
    assert send_grpc(busy.server, message()).is_ok, "no answer once the load was gone"


def test_promise_14_overload_is_counted_as_rejected(busy: Busy, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    """By its time in the queue: what a full queue turns away server 2.51 does not count, so that is the longer one."""
    assert ServingConfig().queue_size >= 8 * ServingConfig().queue_timeout_ms, "8,000 calls a second fill it first"
    before = busy.failed("REJECTED")
    with busy.at_work(1.5 * QUEUE_TIMEOUT_MS / 1e3):
        asked = [pool.submit(send_grpc, busy.server, message()) for _ in range(QUEUE_SIZE - 1)]
    refused = [each.result() for each in asked if each.result().status == "UNAVAILABLE"]
    assert len(refused) == len(asked), "all of them waited for too long"
    wait_until(lambda: busy.failed("REJECTED") - before == len(refused) + 1, "each is counted, and one from before")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_promise_14_the_client_says_overloaded(
    busy: Busy, pool: concurrent.futures.ThreadPoolExecutor, scheme: str
) -> None:
    url = f"{scheme}://127.0.0.1:{busy.server.address.ports[scheme]}"
    with busy.at_work(), Recommender(url, timeout_ms=900, retries=1) as client:
        fill = [pool.submit(send_grpc, busy.server, message()) for _ in range(QUEUE_SIZE - 1)]
        wait_until(lambda: busy.waiting() >= QUEUE_SIZE, "a full queue")
        with pytest.raises(ServerOverloaded, match="more to do than it accepts"):
            client.recommend(user_id=5)
    for each in fill:
        each.result()


def test_promise_15_queue_timeout_is_honoured(busy: Busy, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    """What waited too long is refused and counted; 2.51 looks only when a process is free again."""
    before, ran = busy.failed("REJECTED"), executed(busy.server)
    with busy.at_work(1.5 * QUEUE_TIMEOUT_MS / 1e3) as begun:
        asked = [pool.submit(send_grpc, busy.server, message()) for _ in range(3)]
        wait_until(lambda: busy.waiting() == 4, "four that wait")
    for each in asked:
        assert each.result().status == "UNAVAILABLE" and "timeout" in str(each.result().error), each.result()
    wait_until(lambda: busy.failed("REJECTED") - before == 4, "four that are counted")
    assert executed(busy.server) - ran == begun - 1, "what waited too long was executed"


def test_promise_16_expired_requests_are_never_executed(
    busy: Busy, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    """Neither by the `timeout` of the request, nor by the deadline of the call."""
    rejected, cancelled, ran = busy.failed("REJECTED"), busy.failed("CANCELED"), executed(busy.server)
    brief = message()
    brief.parameters["timeout"].int64_param = 50_000
    with busy.at_work() as begun:
        expiring = [pool.submit(send_grpc, busy.server, brief) for _ in range(3)]
        expiring.append(pool.submit(post, busy.server, document(parameters={"timeout": 50_000})))
        late = [pool.submit(send_grpc, busy.server, message(), timeout_s=0.1) for _ in range(3)]
        for each in late:
            assert each.result().status == "DEADLINE_EXCEEDED", each.result()
    for each in expiring:
        assert each.result().status in ("UNAVAILABLE", "503") and "timeout" in str(each.result().error), each.result()
    wait_until(lambda: busy.failed("CANCELED") - cancelled == 3, "three that are counted as cancelled")
    wait_until(lambda: busy.failed("REJECTED") - rejected == 4, "four that are counted as rejected")
    assert executed(busy.server) - ran == begun, "what had expired was executed"


def test_promise_16_our_client_tells_the_server_its_deadline(busy: Busy) -> None:
    for scheme in ("grpc", "http"):
        ran = executed(busy.server)
        url = f"{scheme}://127.0.0.1:{busy.server.address.ports[scheme]}"
        with busy.at_work() as begun, Recommender(url, timeout_ms=50) as client, pytest.raises(DeadlineExceeded):
            client.recommend(user_id=5)
        wait_until(lambda: busy.waiting() == 0, "an empty queue")
        assert executed(busy.server) - ran == begun, f"what nobody waited for was executed, over {scheme}"


def test_promise_17_cancelling_is_safe_at_any_moment(server: Server) -> None:
    before, random_s = items(server), random.Random(17)
    data = message().SerializeToString()
    with GRPC(server.address) as channel:
        for _ in range(40):
            calls = [channel.channel.unary_unary(INFER).future(data, timeout=20) for _ in range(8)]
            time.sleep(random_s.uniform(0.0, 0.008))
            for call in calls:
                call.cancel()
    wait_until(lambda: items(server) == before, "the answer from before")
    assert [items(server) for _ in range(20)] == [before] * 20


def test_promise_17_what_is_cancelled_in_the_queue_is_not_executed(busy: Busy) -> None:
    cancelled, ran = busy.failed("CANCELED"), executed(busy.server)
    with GRPC(busy.server.address) as channel, busy.at_work() as begun:
        data = message().SerializeToString()
        calls = [channel.channel.unary_unary(INFER).future(data, timeout=20) for _ in range(5)]
        wait_until(lambda: busy.waiting() == 6, "six that wait")
        for call in calls:
            call.cancel()
    wait_until(lambda: busy.failed("CANCELED") - cancelled == 5, "five that are counted")
    assert executed(busy.server) - ran == begun


FLOOD = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
data = bytes.fromhex(sys.argv[2])
call(data)
print("begun", flush=True)
while True:
    calls = [call.future(data) for _ in range(8)]
    [each.exception() for each in calls]
"""


def test_promise_18_a_killed_client_is_harmless(server: Server) -> None:
    before = items(server)
    target, data = f"127.0.0.1:{server.address.grpc_port}", message().SerializeToString().hex()
    clients = [
        subprocess.Popen([sys.executable, "-c", FLOOD, target, data], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    try:
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == b"begun\n"
        time.sleep(0.3)
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    assert client.returncode == -signal.SIGKILL
    assert [items(server) for _ in range(20)] == [before] * 20


def test_promise_18_connections_that_end_in_the_middle_are_harmless(server: Server) -> None:
    before, data = items(server), http_request(INFER_PATH, document())
    for length in range(1, len(data), 7):
        with socket.create_connection((server.address.host, server.address.http_port)) as connection:
            if length % 2:  # a reset in place of an orderly end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(data[:length])
    assert [items(server) for _ in range(5)] == [before] * 5
    assert post(server, document()).is_ok
