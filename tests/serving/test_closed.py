"""What changes the server is closed to callers; answers and health are open to all."""

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from fuserec.serve.launcher import Server

pytestmark = pytest.mark.serving
CALLS = {
    "load": lambda client, headers: client.load_model("encode", headers=headers),
    "unload": lambda client, headers: client.unload_model("encode", headers=headers),
    "shared memory": lambda client, headers: client.register_system_shared_memory("mine", "/x", 8, headers=headers),
    "trace": lambda client, headers: client.update_trace_settings(settings={"trace_rate": "1"}, headers=headers),
    "log": lambda client, headers: client.update_log_settings({"log_verbose_level": 4}, headers=headers),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("guess", [None, "x"], ids=["no key", "wrong key"])
def test_grpc_asks_for_the_key(server: Server, name: str, guess: str | None) -> None:
    headers = guess and {"triton-grpc-protocol-fuserec-admin": guess}
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.address.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="protocol is restricted"):
            CALLS[name](client, headers)
        assert client.is_server_ready() and client.is_model_ready("encode")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("guess", [None, "x"], ids=["no key", "wrong key"])
def test_http_asks_for_the_key(server: Server, name: str, guess: str | None) -> None:
    headers = guess and {"fuserec-admin": guess}
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.address.http_port}") as client:
        with pytest.raises(InferenceServerException, match="API is restricted"):
            CALLS[name](client, headers)
        assert client.is_server_ready() and client.is_model_ready("encode")
