"""The log of a server process: little of it is read, and a rotation takes nothing away."""

import os
import tracemalloc
from pathlib import Path

import pytest

from fuserec.errors import LaunchError
from fuserec.serve.binary import ServerBinary
from fuserec.serve.tritonserver import ServerProcess
from tests.serve.test_launcher import script
from tests.waiting import wait_until


def start(tmp_path: Path, body: str, log: Path) -> ServerProcess:
    return ServerProcess(ServerBinary(script(tmp_path / "server", body), None), [], {}, log)


def test_of_a_large_log_little_is_read(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with log.open("wb") as file:
        file.truncate(3 * 2**30)
    process = start(tmp_path, "echo; echo real problem; exit 3", log)
    try:
        wait_until(lambda: not process.is_running, "the end of the script")
        tracemalloc.start()
        assert "ended with exit status 3" in process.epitaph() and "real problem" in process.epitaph()
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 2**21, f"{peak / 2**20:.0f} MiB were taken to read the end of a log"
    finally:
        tracemalloc.stop()
        process.stop()


@pytest.mark.parametrize("how", ["renamed", "removed", "truncated"])
def test_a_rotated_log_keeps_its_end(tmp_path: Path, how: str) -> None:
    log = tmp_path / "server.log"
    process = start(
        tmp_path, f"echo before; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo after; exit 3", log
    )
    try:
        wait_until(lambda: log.read_text() == "before\n", "its first line")
        if how == "renamed":
            log.rename(tmp_path / "server.log.1")
        elif how == "removed":
            log.unlink()
        else:
            os.truncate(log, 0)
        (tmp_path / "go").touch()
        wait_until(lambda: not process.is_running, "the end of the script")
        assert "after" in process.epitaph()
        if how == "truncated":
            assert log.read_bytes() == b"after\n", "it was written at its old offset"
    finally:
        process.stop()


@pytest.mark.parametrize("what", ["folder", "below a file"])
def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, what: str) -> None:
    log = tmp_path / "log"
    log.mkdir() if what == "folder" else log.touch()
    with pytest.raises(LaunchError, match="cannot be started: .*see --log"):
        start(tmp_path, "exit 0", log if what == "folder" else log / "server.log")


def test_what_hangs_is_killed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuserec.serve.tritonserver.STOP_TIMEOUT_S", 3600.0)
    process = start(tmp_path, "trap '' TERM; echo ready; while true; do sleep 0.1; done", tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").read_text() == "ready\n", "its first line")
    process.stop(kill=True)
    assert not process.is_running
