"""Calls to this machine go through no proxy; others go through the one that curl would take."""

import socket
import threading
from base64 import b64encode
from collections.abc import Iterator

import pytest

from fuserec.client import ClientError, InvalidRequest, Recommender, is_loopback
from fuserec.client._proxy import Proxy, is_direct, proxy_of
from tests.client.servers import Asking, clients, schemes, serving, urls

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "shop.localhost",
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "[::1]",
        "::ffff:127.0.0.1",
    ],
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.1.example",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "128.0.0.1",
        "notlocalhost",
        "",
        "::2",
        "1270.0.0.1",
    ],
)
def test_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("shop.example", "", False),
        ("shop.example", "*", True),
        ("shop.example", "shop.example", True),
        ("shop.example", "SHOP.example.", True),
        ("shop.example", "example", True),
        ("shop.example", ".example", True),
        ("shop.example", "other.example, shop.example", True),
        ("shop.example", "op.example", False),
        ("example", ".example", True),
        ("bigshop.example", "shop.example", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.0/24", True),
        ("192.0.2.7", "198.51.100.0/24", False),
        ("192.0.2.7", "2.7", False),
        ("2001:db8::7", "[2001:db8::7]", True),
        ("2001:db8::7", "2001:db8::/32", True),
        ("0.0.0.0", "", True),
        ("::", "", True),
    ],
)
def test_no_proxy(host: str, no_proxy: str, direct: bool) -> None:
    assert is_direct(host, {"no_proxy": no_proxy}) is direct
    assert is_direct(host, {"NO_PROXY": no_proxy}) is direct


def test_proxy_of_the_environment() -> None:
    everything = {"http_proxy": "http://me:secret@proxy.example:3128/", "https_proxy": "proxy.example:3129"}
    assert proxy_of("http", "shop.example", everything) == Proxy("proxy.example", 3128, "me:secret")
    assert proxy_of("https", "shop.example", everything) == Proxy("proxy.example", 3129, None)
    assert proxy_of("https", "shop.example", {"ALL_PROXY": "http://[2001:db8::1]"}) == Proxy("2001:db8::1", 1080, None)
    assert proxy_of("http", "shop.example", {}) is None
    assert proxy_of("http", "shop.example", {"HTTP_PROXY": "http://proxy.example:1"}) is None, "httpoxy"
    assert proxy_of("http", "shop.example", everything | {"no_proxy": "example"}) is None
    with pytest.raises(InvalidRequest, match=r"invalid all_proxy: must be http://host:port") as caught:
        proxy_of("http", "shop.example", {"all_proxy": "socks5://me:secret@proxy.example:1"})
    assert "secret" not in str(caught.value)


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A proxy that refuses everything, named by every variable; what it was told."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    seen.append(connection.recv(65536))
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        for name in PROXIES:
            monkeypatch.setenv(name, f"http://me:secret@127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield seen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@clients
@schemes
def test_loopback_goes_through_no_proxy(scheme: str, client: str, proxied: list[bytes]) -> None:
    with serving(scheme) as servers, Asking(client, urls(servers), retries=0, timeout_ms=10_000) as asking:
        assert asking.recommend(user_id=1, k=1).item_ids.tolist() == [1000]
    assert not proxied


@clients
@pytest.mark.parametrize("scheme", ["grpc", "http", "https"])
def test_other_hosts_go_through_it(scheme: str, client: str, proxied: list[bytes]) -> None:
    with (
        Asking(client, f"{scheme}://shop.invalid:8123", retries=0, timeout_ms=3_000) as asking,
        pytest.raises(ClientError, match=r"shop\.invalid:8123"),
    ):
        asking.recommend(user_id=1)
    direct = b"POST http://shop.invalid:8123/v2/models/recommend/infer HTTP/1.1"
    assert proxied[0].split(b"\r\n")[0] == (direct if scheme == "http" else b"CONNECT shop.invalid:8123 HTTP/1.1")
    assert b"basic " + b64encode(b"me:secret").lower() in proxied[0].lower()


def test_no_proxy_is_heard_by_grpc(proxied: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "invalid")
    with (
        Recommender("grpc://shop.invalid:8123", retries=0, timeout_ms=2_000) as recommender,
        pytest.raises(ClientError, match=r"shop\.invalid:8123"),
    ):
        recommender.recommend(user_id=1)
    assert not proxied
