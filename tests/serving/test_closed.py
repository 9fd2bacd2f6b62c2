"""What changes the server is closed to callers, whatever key they know; answers and health are open to all."""

import json
import re
from pathlib import Path

import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from fuserec.serve.admin import HEADER, UNREACHABLE
from fuserec.serve.launcher import Server
from fuserec.serve.processes import children_of

pytestmark = pytest.mark.serving
CONFIG = json.dumps({"backend": "python", "max_batch_size": 0})
CALLS = {
    "load": lambda client, headers: client.load_model("encode", headers=headers),
    "load a configuration": lambda client, headers: client.load_model("encode", headers=headers, config=CONFIG),
    "load files": lambda client, headers: client.load_model(
        "encode", headers=headers, config=CONFIG, files={"file:1/model.py": b"raise SystemExit"}
    ),
    "unload": lambda client, headers: client.unload_model("encode", headers=headers),
    "list": lambda client, headers: client.get_model_repository_index(headers=headers),
    "shared memory": lambda client, headers: client.register_system_shared_memory("mine", "/x", 8, headers=headers),
    "trace": lambda client, headers: client.update_trace_settings(settings={"trace_rate": "1"}, headers=headers),
    "log": lambda client, headers: client.update_log_settings({"log_verbose_level": 4}, headers=headers),
}
GUESSES = pytest.mark.parametrize("guess", [None, "x", UNREACHABLE], ids=["no key", "wrong key", "unreachable key"])


@GUESSES
@pytest.mark.parametrize("name", CALLS)
def test_grpc_is_closed(server: Server, name: str, guess: str | None) -> None:
    headers = guess and {f"triton-grpc-protocol-{HEADER}": guess}
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.address.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="protocol is restricted|metadata size exceeds"):
            CALLS[name](client, headers)
        assert client.is_server_ready() and client.is_model_ready("encode")


@GUESSES
@pytest.mark.parametrize("name", CALLS)
def test_http_is_closed(server: Server, name: str, guess: str | None) -> None:
    headers = guess and {HEADER: guess}
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.address.http_port}") as client:
        # A header of that length ends the connection.
        with pytest.raises(Exception, match="API is restricted|connection closed|reset"):
            CALLS[name](client, headers)
        assert client.is_server_ready() and client.is_model_ready("encode")


def test_command_lines_hold_no_key(server: Server) -> None:
    """The launcher's key works, and no process of the machine shows it; the log of the server does not, either."""
    key = server._key.value
    assert key is not None and len(key) >= 32
    with server.admin() as admin:
        admin.load(["encode"], timeout_s=60.0)
    shown = b"".join(path.read_bytes() for path in _command_lines())
    assert re.search(rb"restricted-api=[^\0]*" + HEADER.encode(), shown), "the server is not among what was read"
    assert key.encode() not in shown
    assert key not in server.log.read_text(errors="replace")


def test_shared_memory_is_for_the_server_s_user_alone(server: Server) -> None:
    """Requests, with the ids of users, pass through it."""
    mapped = set()
    for pid in (server.pid, *children_of(server.pid)):
        mapped |= set(re.findall(r"/dev/shm/\S+", Path(f"/proc/{pid}/maps").read_text()))
    regions = [path for name in mapped if (path := Path(name)).exists()]
    assert regions, "no shared memory was found"
    assert {oct(path.stat().st_mode & 0o777) for path in regions} == {"0o600"}


def _command_lines() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
