"""Servers on addresses of IPv6, and with a proxy in the environment that nobody may be sent to."""

from pathlib import Path

import pytest

from fuserec.client import Recommender
from fuserec.serve.launcher import Address, Server
from fuserec.top import Scrape

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("host", ["::1", "::"])
def test_ipv6_is_served_and_asked(repository: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client, canary, administrative API and metrics, none of them through the proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    free = Address.free()
    with Server(repository, address=Address(host, free.grpc_port, free.http_port, free.metrics_port)) as server:
        for scheme, port in (("grpc", free.grpc_port), ("http", free.http_port)):
            with Recommender(f"{scheme}://[::1]:{port}/", timeout_ms=10_000) as recommender:
                assert len(recommender.recommend(history=[1007], k=3)) == 3
        server.canary()
        server.reload("encode")
        assert Scrape.fetch(f"http://[::1]:{free.metrics_port}", 5.0).series
