"""With a key, loading and unloading are closed to those who lack it, and answers stay open to all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from fuserec.client import Recommender
from fuserec.errors import UsageError
from fuserec.serve.launcher import ADMIN_HEADER, ADMIN_KEY, Address, Server

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def address(repository: Path) -> Iterator[Address]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ADMIN_KEY, KEY)
        with Server(repository, address=Address.free(), start_timeout_s=300) as server:
            yield server.address


@pytest.mark.serving
def test_grpc_asks_for_the_key(address: Address) -> None:
    with tritonclient.grpc.InferenceServerClient(f"{address.host}:{address.grpc_port}") as client:
        for headers in (None, {f"triton-grpc-protocol-{ADMIN_HEADER}": KEY + "x"}):
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                client.unload_model("encode", headers=headers)
        assert client.is_model_ready("encode")
        client.load_model("encode", headers={f"triton-grpc-protocol-{ADMIN_HEADER}": KEY})


@pytest.mark.serving
def test_http_asks_for_the_key(address: Address) -> None:
    with tritonclient.http.InferenceServerClient(f"{address.host}:{address.http_port}") as client:
        for headers in (None, {ADMIN_HEADER: KEY + "x"}):
            with pytest.raises(InferenceServerException, match="API is restricted"):
                client.unload_model("encode", headers=headers)
        assert client.is_model_ready("encode")
        client.load_model("encode", headers={ADMIN_HEADER: KEY})


@pytest.mark.serving
def test_answers_and_health_stay_open(address: Address) -> None:
    with tritonclient.http.InferenceServerClient(f"{address.host}:{address.http_port}") as client:
        assert client.is_server_live() and client.is_server_ready()
    with Recommender(f"grpc://{address.host}:{address.grpc_port}", timeout_ms=10_000) as client:
        assert len(client.recommend(history=[1000], k=5)) == 5


@pytest.mark.parametrize("key", ["short", "0123456789abcde,f", "0123456789abcdef\n"])
def test_a_poor_key_is_refused_and_not_shown(repository: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_KEY, key)
    with pytest.raises(UsageError, match=f"{ADMIN_KEY} is not 16 to 128") as caught:
        Server(repository, address=Address.free()).start()
    assert key not in str(caught.value)
