"""What one request can do to a server: work is bounded by name, ends with its time, and holds up nobody else."""

from __future__ import annotations

import concurrent.futures
import pkgutil
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuserec.client import DeadlineExceeded, InvalidRequest, Recommender, Rules, ServerOverloaded
from fuserec.serve.launcher import Address, Server
from fuserec.serve.settings import ServingConfig
from fuserec.top import Scrape, view
from tests.serving.promises.conftest import replace, slow_server
from tests.serving.promises.raw import K_TENSOR, USER_TENSOR, Tensor, message, send_grpc, text
from tests.serving.scraping import settled, wait_for

pytestmark = pytest.mark.serving
RULES: Tensor = ("rules", "BYTES", [1, 1], text(b'{"caps": {"*": 2}}'))
HEAVY_QUEUE = 2
SLOW_S = 1.0
# Fetching items for rules takes a second; everything else takes what it takes.
SLOW_RULES = f"""
import time
from fuserec.serve.candidates import RuleCandidates
from fuserec.serve.triton_models import RecommendModel as TritonPythonModel

fetch = RuleCandidates.__call__
def slow(self, wanted):
    time.sleep({SLOW_S})
    return fetch(self, wanted)
RuleCandidates.__call__ = slow
"""


def address(server: Server) -> str:
    return f"127.0.0.1:{server.address.grpc_port}"


@pytest.fixture(scope="module")
def slow(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose rules are slow, and heavy however small the catalogue."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("slow") / "repository"))
    replace(copy, 1, "recommend/model.py", SLOW_RULES.encode())
    settings = ServingConfig(heavy_ms=0.005, heavy_queue=HEAVY_QUEUE, max_request_ms=4_000.0)
    with Server(copy, address=Address.free(), settings=settings) as server:
        yield server


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        yield pool


def requests(found: Scrape, outcome: str) -> float:
    return found.total("fuserec_requests_total", model="recommend", outcome=outcome)


def test_light_calls_go_past_heavy_ones(slow: Server, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    before = settled(slow)
    with Recommender(address(slow), timeout_ms=20_000) as client:
        client.recommend(user_id=5, k=3)
        heavy = [
            pool.submit(client.recommend, user_id=5, k=3, rules=Rules(caps={"*": 2})) for _ in range(1 + HEAVY_QUEUE)
        ]
        time.sleep(0.2)
        for _ in range(3):  # few: on a loaded machine each may take long
            client.recommend(user_id=5, k=3)
        assert sum(each.done() for each in heavy) < len(heavy), "light calls waited for the heavy ones"
        assert [each.result().item_ids.tolist() for each in heavy] == [heavy[0].result().item_ids.tolist()] * len(heavy)
    answers = 1 + len(heavy) + 3
    wait_for(
        slow, lambda found: requests(found, "answered") - requests(before, "answered") == answers, f"{answers} answers"
    )


def test_a_request_ends_with_its_time_and_harms_no_other(
    slow: Server, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    """The server itself ends it: nobody cancels this call, which has a `timeout` and no deadline."""
    before = settled(slow)
    brief = message(USER_TENSOR, K_TENSOR, RULES)
    brief.parameters["timeout"].int64_param = int(1e6 * SLOW_S / 5)
    expired, whole = (
        pool.submit(send_grpc, slow, brief),
        pool.submit(send_grpc, slow, message(USER_TENSOR, K_TENSOR, RULES)),
    )
    assert expired.result().status == "CANCELLED" and "timeout of the request" in str(expired.result().error)
    assert whole.result().is_ok, whole.result()
    wait_for(slow, lambda found: requests(found, "expired") - requests(before, "expired") == 1, "one that expired")


def test_a_caller_that_has_gone_is_not_worked_for(slow: Server) -> None:
    before = settled(slow)
    with Recommender(address(slow), timeout_ms=1e3 * SLOW_S / 5) as client, pytest.raises(DeadlineExceeded):
        client.recommend(user_id=5, k=3, rules=Rules(caps={"*": 2}))
    wait_for(slow, lambda found: requests(found, "expired") - requests(before, "expired") == 1, "one that expired")


@pytest.mark.parametrize(
    ("scheme", "encoder"), [("grpc", "fuserec.client._grpc._request"), ("http", "fuserec.client._http.request_bytes")]
)
def test_the_client_knows_a_request_that_expired(
    slow: Server, scheme: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As our client would be told if its clock were the slower one."""
    url = f"{scheme}://127.0.0.1:{slow.address.ports[scheme]}"
    with Recommender(url, timeout_ms=20_000, retries=0) as client:
        encode = pkgutil.resolve_name(encoder)
        monkeypatch.setattr(encoder, lambda sent, timeout_s, *rest: encode(sent, 0.1, *rest))
        with pytest.raises(DeadlineExceeded):
            client.recommend(user_id=5, k=3, rules=Rules(caps={"*": 2}))


def test_more_heavy_requests_than_may_wait_are_shed_and_counted(
    slow: Server, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    before = settled(slow)
    asked = [pool.submit(send_grpc, slow, message(USER_TENSOR, K_TENSOR, RULES)) for _ in range(24)]
    replies = [each.result() for each in asked]
    shed = [reply for reply in replies if not reply.is_ok]
    assert 0 < len(shed) < 24
    assert all(reply.status == "UNAVAILABLE" and "heavy_queue" in str(reply.error) for reply in shed), shed
    found = wait_for(
        slow, lambda found: requests(found, "shed") - requests(before, "shed") == len(shed), f"{len(shed)} shed"
    )
    row = next(each for each in view(before, found).models if each.model == "recommend")
    assert row.rejected_per_s > 0 and row.refused_per_s == row.failed_per_s == 0


def test_work_beyond_a_limit_is_refused_by_its_name(repository: Path) -> None:
    limits = {"max_k": 50, "max_rows": 4, "max_history": 5, "max_exclude": 6, "max_allow": 7, "max_items": 120}
    limits |= {"max_diverse_items": 30, "max_rule_items": 40}
    with (
        Server(repository, address=Address.free(), settings=ServingConfig(heavy_ms=0.005, **limits)) as server,
        Recommender(address(server), timeout_ms=20_000) as client,
    ):
        asked: dict[str, Callable[[], object]] = {
            "invalid k=51: must be 1 to 50 .max_k": lambda: client.recommend(user_id=5, k=51),
            "6 ids a row, expected at most 5 .max_history": lambda: client.recommend(history=range(6)),
            "7 ids a row, expected at most 6 .max_exclude": lambda: client.recommend(user_id=5, exclude=range(7)),
            "8 ids a row, expected at most 7 .max_allow": lambda: client.recommend(user_id=5, allow=range(8)),
            "with diversity: must be at most 30 .max_diverse_items": lambda: client.recommend(
                user_id=5, k=31, rules=Rules(diversity=0.1)
            ),
            "must need at most 40 items .max_rule_items": lambda: client.recommend(
                user_id=5, k=50, rules=Rules(boosts={"Even": 1.0})
            ),
        }
        for said, ask in asked.items():
            with pytest.raises(InvalidRequest, match=said):
                ask()
        five = [
            ("user_id", "INT64", [5, 1], struct.pack("<q", 5) * 5),
            ("k", "INT32", [5, 1], struct.pack("<i", 3) * 5),
        ]
        assert "invalid rows=5: must be 1 to 4 (max_rows)" in str(send_grpc(server, message(*five)).error)
        three = [
            ("user_id", "INT64", [3, 1], struct.pack("<q", 5) * 3),
            ("k", "INT32", [3, 1], struct.pack("<i", 41) * 3),
        ]
        assert "invalid sum of k=123: must be at most 120 (max_items)" in str(send_grpc(server, message(*three)).error)
        wait_for(server, lambda found: requests(found, "refused") == len(asked) + 2, "each is counted as refused")
        found = client.recommend(user_id=5, k=5, rules=Rules(caps={"*": 2})).item_ids
        assert (found >= 0).sum() == 4, "two of each category"


def test_a_flood_shows_as_load_that_was_shed(
    repository: Path, tmp_path: Path, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    """Of many calls at once those that wait too long are refused, and the server's own counter says how many."""
    # Whoever waits for a call under way has waited too long, however the server makes its batches.
    with slow_server(repository, tmp_path, ServingConfig(queue_timeout_ms=50.0)) as server:
        before = settled(server)
        busy: Tensor = ("user_id", "INT64", [1, 1], struct.pack("<q", 10**9 + 150))  # takes 150 ms
        asked = [pool.submit(send_grpc, server, message(busy, K_TENSOR)) for _ in range(120)]
        asked.append(pool.submit(send_grpc, server, message(USER_TENSOR, ("k", "INT32", [1, 1], bytes(4)))))
        replies = [each.result() for each in asked]
        shed = sum(reply.status == "UNAVAILABLE" for reply in replies)
        assert 0 < shed < 120, f"{shed} of 120 calls were shed"
        found = wait_for(
            server,
            lambda found: (
                found.total("nv_inference_request_failure", model="recommend", reason="REJECTED") == shed
                and requests(found, "answered") - requests(before, "answered") == sum(reply.is_ok for reply in replies)
            ),
            f"{shed} rejected",
        )
        row = next(each for each in view(before, found).models if each.model == "recommend")
        seconds = found.time_s - before.time_s
        assert row.rejected_per_s * seconds == pytest.approx(shed)
        assert row.failed_per_s == 0


def test_the_client_calls_a_full_lane_overloaded(slow: Server, pool: concurrent.futures.ThreadPoolExecutor) -> None:
    asked = [pool.submit(send_grpc, slow, message(USER_TENSOR, K_TENSOR, RULES)) for _ in range(16)]
    time.sleep(0.3)
    with Recommender(address(slow), timeout_ms=20_000, retries=0) as client, pytest.raises(ServerOverloaded):
        client.recommend(user_id=5, k=3, rules=Rules(caps={"*": 2}))
    concurrent.futures.wait(asked)
