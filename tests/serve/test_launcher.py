"""A server that cannot start says why, at once, and leaves nothing behind."""

import socket
import stat
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from fuserec.errors import BundleError, LaunchError, UsageError
from fuserec.serve.admin import Admin, Key
from fuserec.serve.binary import find_binary
from fuserec.serve.launcher import Address, Server


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_ports_must_differ() -> None:
    with pytest.raises(UsageError, match="the ports must differ"):
        Address(grpc_port=8000, http_port=8000)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_port_out_of_range(port: int) -> None:
    with pytest.raises(UsageError, match=f"--http-port came as {port}, expected 1 to 65535"):
        Address(http_port=port)


def test_port_in_use_is_named(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = Address.free()
        address = Address(grpc_port=free.grpc_port, http_port=port, metrics_port=free.metrics_port)
        with pytest.raises(LaunchError, match=f"cannot listen on 127.0.0.1:{port} for http .*--http-port"):
            Server(repository, address=address).start()


def test_binary_missing(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="not an executable file"):
        find_binary(tmp_path / "tritonserver")


@pytest.mark.parametrize(
    ("python", "message"), [((3, 12, 1), "fuserec.serve.* brings one"), ((3, 13, 0), "none for Python 3.13: use")]
)
def test_without_the_wheel_the_error_knows_the_python(
    python: tuple[int, int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = type(sys.version_info)  # cannot be made, hence a named tuple of its own
    monkeypatch.setattr("sys.version_info", namedtuple("Version", version.__match_args__[:3])(*python))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=message):
        find_binary()


@pytest.mark.parametrize("version", ["2.0.0", "2.5.5", "3.0.0rc1"])
def test_numpy_that_the_bundled_server_misreads_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Its models would answer every element as the first one, without a word."""
    monkeypatch.setattr("numpy.__version__", version)
    with pytest.raises(LaunchError, match=rf"numpy {version} is installed, .*pip install 'numpy<2'"):
        find_binary()


def test_numpy_is_of_no_account_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numpy.__version__", "2.5.5")
    assert find_binary(script(tmp_path / "server", "exit 0")).wheel is None


def test_bundled_binary_is_recognized_by_its_path() -> None:
    bundled = find_binary()
    assert find_binary(bundled.path) == bundled


def test_server_that_dies_shows_the_end_of_its_log(repository: Path, tmp_path: Path) -> None:
    binary = script(tmp_path / "server", "echo first problem; echo real problem >&2; exit 3")
    server = Server(repository, address=Address.free(), binary=binary)
    with pytest.raises(LaunchError, match="ended with exit status 3") as caught:
        server.start()
    assert "real problem" in str(caught.value)


def test_log_keeps_what_was_said_before_a_start(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("of another day\n")
    binary = script(tmp_path / "server", f"echo start >> {tmp_path}/starts; wc -l < {tmp_path}/starts; exit 3")
    server = Server(repository, address=Address.free(), binary=binary, log=log)
    for _ in range(2):
        with pytest.raises(LaunchError, match="ended with exit status 3"):
            server.start()
    assert log.read_text().splitlines() == ["of another day", "1", "2"]


def test_log_may_go_to_stderr(repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    binary = script(tmp_path / "server", "echo real problem; exit 3")
    with pytest.raises(LaunchError, match="ended with exit status 3"):
        Server(repository, address=Address.free(), binary=binary, log=Path("-")).start()
    assert "real problem" in capfd.readouterr().err


def test_server_that_never_answers_is_ended(repository: Path, tmp_path: Path) -> None:
    binary = script(tmp_path / "server", f"echo $$ > {tmp_path}/pid; echo waiting for godot; exec sleep 600")
    server = Server(repository, address=Address.free(), binary=binary, start_timeout_s=1.0)
    with pytest.raises(LaunchError, match="did not answer within 1 s") as caught:
        server.start()
    assert "waiting for godot" in str(caught.value)
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists(), "the server process was left running"


def test_damaged_repository_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds no bundle"):
        Server(tmp_path, address=Address.free()).start()


def test_stop_without_start_does_nothing(repository: Path) -> None:
    Server(repository).stop()


def test_loading_no_model_asks_nothing_of_the_server() -> None:
    """A repository with the front door alone has no stage to load before it."""
    with Admin("127.0.0.1:1", Key()) as admin:
        admin.load([], timeout_s=1.0)
        with pytest.raises(LaunchError, match="'recommend' cannot be loaded"):
            admin.load(["recommend"], timeout_s=1.0)
