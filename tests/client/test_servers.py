"""Both clients against servers in this process that fail on command."""

import concurrent.futures
import time
from pathlib import Path

import pytest

from fuserec.client import (
    TLS,
    AsyncRecommender,
    DeadlineExceeded,
    InvalidRequest,
    Query,
    Recommender,
    Rules,
    ServerFault,
    ServerOverloaded,
    ServerUnavailable,
    Unauthorized,
)
from tests.client.servers import Asking, Certificates, clients, linger, refuse, schemes, serving, urls

SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER_SPAN = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@clients
@schemes
def test_call_as_it_travels(scheme: str, client: str) -> None:
    with (
        serving(scheme) as servers,
        Asking(client, urls(servers), token="s3cret", trace_context=lambda: SPAN) as asking,
    ):
        answer = asking.recommend(
            user_id=7, history=[3], k=2, allow=[7000, 7001], rules=Rules(caps={"*": 1}), text="quiet", timeout_ms=2_000
        )
        asking.recommend(user_id=8, traceparent=OTHER_SPAN)
    assert list(answer) == [(7000, 1.0), (7001, 0.0)] and answer.version == 1
    first, second = servers[0].seen
    assert {name: array.tolist() for name, array in first.tensors.items()} == {
        "user_id": [[7]],
        "history": [[3]],
        "exclude": [[]],
        "k": [[2]],
        "allow": [[7000, 7001]],
        "rules": [[b'{"boosts": {}, "caps": {"*": 1}, "diversity": 0.0}']],
        "text": [[b"quiet"]],
    }
    assert first.headers["authorization"] == "Bearer s3cret"
    assert (first.headers["traceparent"], second.headers["traceparent"]) == (SPAN, OTHER_SPAN)
    assert 1_000_000 < first.timeout_us <= 2_000_000, "the server was not told how much time is left"
    assert set(second.tensors) == {"user_id", "history", "exclude", "k"}


@schemes
def test_token_may_change(scheme: str) -> None:
    tokens = iter(["one", "two", "three\nX: y"])
    with serving(scheme) as servers, Recommender(urls(servers), token=lambda: next(tokens)) as recommender:
        recommender.recommend(user_id=1)
        recommender.recommend(user_id=1)
        with pytest.raises(InvalidRequest, match="token .* no header can carry"):
            recommender.recommend(user_id=1)
    assert [seen.headers["authorization"] for seen in servers[0].seen] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    "traceparent", ["", "x", SPAN[:-1], SPAN.upper(), "00-" + "0" * 32 + SPAN[35:], SPAN[:36] + "0" * 16 + "-01", 7]
)
def test_traceparent_is_checked(traceparent: object) -> None:
    with Recommender("127.0.0.1:1") as recommender, pytest.raises(InvalidRequest, match="traceparent came as"):
        recommender.recommend(user_id=1, traceparent=traceparent)  # type: ignore[arg-type]


@clients
@schemes
def test_unavailable_is_tried_again_and_faults_are_not(scheme: str, client: str) -> None:
    with serving(scheme) as servers, Asking(client, urls(servers), timeout_ms=5_000) as asking:
        (server,) = servers
        server.behave = refuse("UNAVAILABLE", times=2)
        assert len(asking.recommend(user_id=1, k=3)) == 3 and len(server.seen) == 3
        server.behave = refuse("UNAVAILABLE", message="Exceeds maximum queue size")
        with pytest.raises(ServerOverloaded, match="more to do") as overload:
            asking.recommend(user_id=1)
        for status, expected in (
            ("INTERNAL", ServerFault),
            ("UNAUTHENTICATED", Unauthorized),
            ("INVALID_ARGUMENT", InvalidRequest),
        ):
            server.behave, before = refuse(status), len(server.seen)
            with pytest.raises(expected, match="on purpose") as caught:
                asking.recommend(user_id=1)
            assert len(server.seen) == before + 1, f"{status} was sent again"
            assert (caught.value.endpoint, caught.value.attempts) == (urls(servers)[0], 1)
    assert (overload.value.endpoint, overload.value.attempts) == (urls(servers)[0], 3)


@clients
@schemes
def test_dead_server_is_left_out_and_comes_back(scheme: str, client: str) -> None:
    with serving(scheme, 2) as servers, Asking(client, urls(servers), timeout_ms=5_000) as asking:
        versions = {asking.recommend(user_id=user, k=1).version for user in range(40)}
        assert versions == {1, 2}
        servers[0].stop()
        for user in range(40):
            answer = asking.recommend(user_id=user, k=1)
            assert (answer.version, answer.item_ids.tolist()) == (2, [1000 * user])
        servers[0].start()
        end = time.monotonic() + 10
        while asking.recommend(user_id=1).version != 1:
            assert time.monotonic() < end, "no call reached the server within 10 s of its return"
            time.sleep(0.02)


@clients
@schemes
def test_all_servers_dead(scheme: str, client: str) -> None:
    with serving(scheme, 2) as servers:
        endpoints = urls(servers)
    with Asking(client, endpoints, timeout_ms=3_000) as asking:
        for _ in range(5):
            with pytest.raises(ServerUnavailable) as caught:
                asking.recommend(user_id=1)
            assert caught.value.attempts == 3 and caught.value.endpoint in endpoints


@clients
@schemes
def test_hedge_overtakes_a_slow_server(scheme: str, client: str) -> None:
    with (
        serving(scheme, 2) as servers,
        Asking(client, urls(servers), timeout_ms=20_000, hedge_after_ms=50) as asking,
    ):
        for user in range(10):
            asking.recommend(user_id=user)  # connections are open
        servers[0].behave = linger(10)
        begin = time.monotonic()
        answers = [asking.recommend(user_id=user, k=2) for user in range(20)]
        took = time.monotonic() - begin
        assert [answer.version for answer in answers] == [2] * 20
        assert [answer.item_ids.tolist() for answer in answers] == [[1000 * n, 1000 * n + 1] for n in range(20)]
        assert took < 5, f"20 calls with hedges took {took:.1f} s"
        slow = servers[0].seen[-1]
        end = time.monotonic() + 5
        while not slow.cancelled:
            assert time.monotonic() < end, "the slow server was not told that nobody waits any more"
            time.sleep(0.01)
        servers[0].behave = lambda seen: None
        # No late answer of before may be taken for another call's.
        for user in range(50, 80):
            assert asking.recommend(user_id=user, k=1).item_ids.tolist() == [1000 * user]


@clients
@schemes
def test_deadline_holds_whatever_the_server_does(scheme: str, client: str) -> None:
    with serving(scheme, 2) as servers:
        for hedge_after_ms in (None, 100):
            with Asking(client, urls(servers), timeout_ms=300, hedge_after_ms=hedge_after_ms) as asking:
                asking.recommend(user_id=1, timeout_ms=10_000)
                for server in servers:
                    server.behave = linger(10)
                begin = time.monotonic()
                with pytest.raises(DeadlineExceeded, match="did not answer within 300 ms"):
                    asking.recommend(user_id=1)
                assert 0.29 < time.monotonic() - begin < 1.5
                for server in servers:
                    server.behave = refuse("UNAVAILABLE")
                with pytest.raises(ServerUnavailable):
                    asking.recommend(user_id=1)
                for server in servers:
                    server.behave = lambda seen: None


@clients
@schemes
def test_many_queries(scheme: str, client: str) -> None:
    queries = [Query(user_id=user, k=1 + user % 3, history=range(user % 5)) for user in range(300)]
    with serving(scheme) as servers, Asking(client, urls(servers), timeout_ms=20_000) as asking:
        servers[0].behave = linger(0.05)
        answers = asking.recommend_many(queries)
        assert asking.recommend_many([]) == []
    assert [answer.item_ids.tolist() for answer in answers] == [
        [1000 * query.user_id + rank for rank in range(query.k)] for query in queries
    ]
    assert sorted(len(seen.tensors["k"]) for seen in servers[0].seen) == [44, 64, 64, 64, 64]
    assert 2 <= servers[0].most_at_once <= 4, f"{servers[0].most_at_once} requests were on their way at once"


@clients
@schemes
def test_bad_query_is_named_before_anything_is_sent(scheme: str, client: str) -> None:
    with serving(scheme) as servers, Asking(client, urls(servers)) as asking:
        with pytest.raises(InvalidRequest, match="query 77: k came as 0, expected 1 to"):
            asking.recommend_many([Query(user_id=1)] * 77 + [Query(user_id=1, k=0)])
        assert not servers[0].seen


@clients
@schemes
def test_many_queries_have_one_deadline(scheme: str, client: str) -> None:
    with serving(scheme) as servers, Asking(client, urls(servers), timeout_ms=400) as asking:
        servers[0].behave = linger(0.3)
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            asking.recommend_many([Query(user_id=1)] * 640)
        assert time.monotonic() - begin < 2


@clients
@schemes
def test_fallback_answers_when_nobody_else_does(scheme: str, client: str) -> None:
    asked = []

    def fallback(error: Exception, query: Query) -> list[int] | None:
        asked.append((type(error), query.user_id))
        return [5, 6, 7] if query.user_id != 13 else None

    with serving(scheme) as servers, Asking(client, urls(servers), retries=0, fallback=fallback) as asking:
        servers[0].behave = refuse("INTERNAL")
        answer = asking.recommend(user_id=1, k=2)
        assert (answer.item_ids.tolist(), answer.source, answer.fallback, answer.version) == (
            [5, 6],
            "client",
            True,
            None,
        )
        many = asking.recommend_many([Query(user_id=user, k=1 + user) for user in range(3)])
        assert [each.item_ids.tolist() for each in many] == [[5], [5, 6], [5, 6, 7]]
        with pytest.raises(ServerFault):
            asking.recommend(user_id=13)
        assert asked == [(ServerFault, user) for user in (1, 0, 1, 2, 13)]
        servers[0].behave = refuse("INVALID_ARGUMENT")
        with pytest.raises(InvalidRequest):
            asking.recommend(user_id=1)
        servers[0].behave = lambda seen: None
        assert asking.recommend(user_id=1).source == "server" and len(asked) == 5


@schemes
def test_threads_share_a_client(scheme: str) -> None:
    with (
        serving(scheme, 2) as servers,
        Recommender(urls(servers), timeout_ms=20_000, hedge_after_ms=200) as recommender,
    ):

        def ask(user: int) -> list[int]:
            return recommender.recommend(user_id=user, k=2).item_ids.tolist()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(200)))
    assert answers == [[1000 * user, 1000 * user + 1] for user in range(200)]


@clients
@schemes
def test_tls_with_certificates_of_both_sides(scheme: str, client: str, certificates: Certificates) -> None:
    certificate, key = certificates.pair("client")
    tls = TLS(ca=certificates.ca, certificate=certificate, key=key)
    with serving(scheme, certificates=certificates) as servers:
        plain = urls(servers)[0]
        secured = plain.replace("://", "s://")
        for url in (plain, secured):
            with Asking(client, url, tls=tls, timeout_ms=10_000) as asking:
                assert asking.recommend(user_id=1, k=1).item_ids.tolist() == [1000]
        before = len(servers[0].seen)
        for url, wrong in ((secured, None), (secured, TLS(ca=certificates.ca)), (plain, None)):
            with Asking(client, url, tls=wrong, retries=0, timeout_ms=3_000) as asking:
                with pytest.raises((ServerUnavailable, DeadlineExceeded)) as caught:
                    asking.recommend(user_id=1)
                assert caught.value.endpoint == url
        assert len(servers[0].seen) == before


def test_tls_files_are_checked(certificates: Certificates, tmp_path: Path) -> None:
    certificate, key = certificates.pair("client")
    with pytest.raises(InvalidRequest, match="one of certificate and key"):
        TLS(certificate=certificate)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        TLS(ca=tmp_path / "missing.pem")
    with pytest.raises(InvalidRequest, match="cannot be read.*expected PEM files that fit"):
        TLS(certificate=certificate, key=certificates.pair("server")[1])
    with pytest.raises(InvalidRequest, match="tls=False"):
        Recommender("grpcs://localhost:1", tls=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"endpoints": []}, "endpoints came empty", id="none"),
        pytest.param({"endpoints": ["a:1", "http://b:1"]}, "all gRPC or all HTTP", id="mixed"),
        pytest.param({"endpoints": ["a:1", "grpc://a:1"]}, "different servers", id="twice"),
        pytest.param({"endpoints": ["a:1", "a:b"]}, "endpoint came as 'a:b'", id="one bad"),
        pytest.param({"endpoints": "a:1", "retries": -1}, "retries came as -1", id="retries"),
        pytest.param({"endpoints": "a:1", "retries": 1.5}, "retries came as 1.5", id="retries not whole"),
        pytest.param({"endpoints": "a:1", "hedge_after_ms": 0}, "hedge_after_ms came as 0", id="hedge"),
        pytest.param({"endpoints": "a:1", "timeout_ms": "1"}, "timeout_ms came as '1'", id="timeout"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    for client in (Recommender, AsyncRecommender):
        with pytest.raises(InvalidRequest, match=message):
            client(**arguments)  # type: ignore[arg-type]


def test_token_in_the_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Recommender("127.0.0.1:1", token="s3cret").close()
    Recommender("grpcs://shop.example:1", token="s3cret").close()
    assert not caplog.records
    Recommender("shop.example:1", token="s3cret").close()
    assert "readable" in caplog.text and "s3cret" not in caplog.text
