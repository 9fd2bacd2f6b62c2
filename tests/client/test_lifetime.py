"""Clients that are closed, abandoned in a call, taken to another event loop, or forked."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fuserec.client import AsyncRecommender, InvalidRequest, Query, Recommender
from tests.client.servers import Asking, clients, linger, schemes, serving, urls

# What the library of gRPC keeps for the process, however many clients there are.
ENGINE = {"grpc": 12, "http": 0}


@clients
@schemes
def test_closed_client_says_so(scheme: str, client: str) -> None:
    with serving(scheme) as servers, Asking(client, urls(servers)) as asking:
        asking.recommend(user_id=1)
        asking.close()
        asking.close()
        for call in (lambda: asking.recommend(user_id=1), lambda: asking.recommend_many([Query(), Query()])):
            with pytest.raises(InvalidRequest, match="is closed"):
                call()


@schemes
def test_close_during_a_call(scheme: str) -> None:
    with serving(scheme) as servers, Recommender(urls(servers), timeout_ms=10_000) as recommender:
        servers[0].behave = linger(10)
        timer = threading.Timer(0.2, recommender.close)
        timer.start()
        with pytest.raises(InvalidRequest, match="closed"):
            recommender.recommend(user_id=1)
        timer.join()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@schemes
def test_threads_that_ended_leave_no_descriptor(scheme: str) -> None:
    with serving(scheme) as servers:
        before = descriptors()
        with Recommender(urls(servers), timeout_ms=20_000, hedge_after_ms=5_000) as recommender:
            for _ in range(3):
                threads = [threading.Thread(target=recommender.recommend, kwargs={"user_id": 1}) for _ in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            during = descriptors() - before
        end = time.monotonic() + 5
        while (left := descriptors() - before) > ENGINE[scheme] and time.monotonic() < end:
            time.sleep(0.02)  # the server of this process closes its ends a moment later
    # 8 connections have two ends in this process.
    assert during <= 16 + ENGINE[scheme], f"24 threads that ended hold {during} descriptors"
    assert left <= ENGINE[scheme], f"the closed client left {left} descriptors"


def test_connection_that_the_server_closed_meanwhile_is_replaced() -> None:
    """Without a retry of the call, for nobody has failed."""
    with serving("http") as servers, Recommender(urls(servers), retries=0, timeout_ms=10_000) as recommender:
        for user in range(3):
            assert recommender.recommend(user_id=user, k=1).item_ids.tolist() == [1000 * user]
            for connection in servers[0]._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@schemes
def test_asyncio_client_belongs_to_a_loop(scheme: str) -> None:
    with serving(scheme) as servers:

        async def call() -> None:
            await recommender.recommend(user_id=1)

        async def close() -> None:
            await recommender.close()

        recommender = AsyncRecommender(urls(servers))
        with asyncio.Runner() as runner:
            runner.run(call())
            with asyncio.Runner() as other, pytest.raises(InvalidRequest, match="event loop of its first call"):
                other.run(call())
            runner.run(close())


@schemes
def test_cancelled_call_tells_the_server(scheme: str) -> None:
    with serving(scheme) as servers:
        servers[0].behave = linger(10)

        async def call() -> None:
            async with AsyncRecommender(urls(servers), timeout_ms=10_000) as recommender:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(recommender.recommend(user_id=1), 0.3)
                while not servers[0].seen[0].cancelled:
                    await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(call(), 5))


CHILD_OF_A_CALLER = """
import os, sys
from fuserec.client import Recommender

with Recommender(sys.argv[1], timeout_ms=20_000) as recommender:
    recommender.recommend(user_id=1)
    child = os.fork()
    if child == 0:
        with Recommender(sys.argv[1], timeout_ms=20_000) as own:
            os._exit(own.recommend(user_id=2, k=1).item_ids.tolist() != [2000])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(recommender.recommend(user_id=3, k=1).item_ids.tolist())
"""


def test_new_client_after_a_fork_over_http() -> None:
    """The parent has called before; the child makes a client of its own, as its message says."""
    with serving("http") as servers:
        command = [sys.executable, "-c", CHILD_OF_A_CALLER, urls(servers)[0]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["0", "[3000]"], done.stderr


FORK = """
import os, sys
from fuserec.client import InvalidRequest, Recommender

early, late = Recommender(sys.argv[1]), Recommender(sys.argv[1])
used = sys.argv[2] == "used"
if used:
    early.recommend(user_id=1)
child = os.fork()
if child == 0:
    status = 3
    try:
        status = 0 if early.recommend(user_id=2, k=1).item_ids.tolist() == [2000] else 4
    except InvalidRequest as error:
        status = 1 if "do not survive a fork" in str(error) else 5
    finally:
        os._exit(status)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("used", "status"), [("fresh", "0"), ("used", "1")])
@schemes
def test_fork(scheme: str, used: str, status: str) -> None:
    """A client that made no call yet works in a child; one that did says what to do."""
    with serving(scheme) as servers:
        command = [sys.executable, "-c", FORK, urls(servers)[0], used]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == status, done.stderr
