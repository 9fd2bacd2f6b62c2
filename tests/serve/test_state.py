"""Notes about servers: served without one where none can be kept, and never taken from the dead."""

import logging
import os
import subprocess
from pathlib import Path

import pytest

from fuserec.serve.launcher import Address
from fuserec.serve.state import Notebook, Refused, Status, log_file, note_of, noted, notes, repository_of

STATUS = Status(2, 3, "opening", {"4": Refused("broken", 1.5)}, {"version": 5, "state": "running"})


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_round_trip(state: Path) -> None:
    address = Address.free()
    with noted(address, Path("/models")) as notebook:
        assert repository_of(f"http://127.0.0.1:{address.http_port}/") == Path("/models")
        notebook.write(STATUS)
        note = note_of(f"127.0.0.1:{address.grpc_port}")
        assert note is not None and note.status == STATUS and note.pid == os.getpid()
    assert notes() == []


@pytest.mark.parametrize("home", ["a file", "/proc", "/dev/null"])
def test_a_state_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, home: str
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / home) if home == "a file" else home)
    with caplog.at_level(logging.WARNING), noted(Address.free(), tmp_path) as notebook:
        notebook.write(STATUS)
        notebook.write(STATUS)
    assert len(caplog.messages) == 1 and "XDG_STATE_HOME" in caplog.messages[0]
    assert log_file(Address()) is None
    assert notes() == []


def test_a_note_of_a_launcher_that_is_gone_is_none(state: Path) -> None:
    address = Address.free()
    Notebook(address, Path("/models")).write(STATUS)
    path = state / "fuserec" / "servers" / f"{address.grpc_port}.json"
    gone = subprocess.Popen(["true"])
    gone.wait()
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {gone.pid}'))
    assert repository_of(f"127.0.0.1:{address.grpc_port}") is None


def test_a_launcher_takes_no_other_ones_note_away(state: Path) -> None:
    address = Address.free()
    path = state / "fuserec" / "servers" / f"{address.grpc_port}.json"
    with noted(address, Path("/models")):
        path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {os.getppid()}'))
    assert path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"ports": []}', b'{"repository": 1, "ports": {"grpc": "x"}}']
)
def test_what_is_no_note_is_passed_over(state: Path, content: bytes) -> None:
    folder = state / "fuserec" / "servers"
    folder.mkdir(parents=True)
    (folder / "8001.json").write_bytes(content)
    assert notes() == []


def test_servers_on_one_port_of_two_addresses_have_notes_and_logs_of_their_own(state: Path) -> None:
    first, second = Address("127.0.0.1"), Address("127.0.0.2")
    with noted(first, Path("/first")), noted(second, Path("/second")):
        assert repository_of("localhost:8001") == repository_of("127.0.0.1:8001") == Path("/first")
        assert repository_of("127.0.0.2:8001") == Path("/second")
        assert repository_of("192.0.2.1:8001") is None, "a server elsewhere is none of this machine"
    assert log_file(first) != log_file(second)


def test_a_server_on_every_address_is_found_by_each(state: Path) -> None:
    with noted(Address("0.0.0.0"), Path("/models")):
        assert repository_of("127.0.0.1:8001") == repository_of("127.0.0.9:8001") == Path("/models")
        assert repository_of("192.0.2.1:8001") is None
