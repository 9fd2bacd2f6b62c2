"""A sealed option is seen by the program it is for, and at no moment by anybody who reads its command line."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fuserec.serve import sealed, tritonserver
from fuserec.serve.binary import ServerBinary
from fuserec.serve.launcher import Address, Server
from fuserec.serve.sealed import PLACEHOLDER, CannotSeal
from fuserec.serve.tritonserver import ServerProcess

SECRET = "--key=0123456789abcdef"


def echo(tmp_path: Path) -> ServerBinary:
    """A program that says what it was given, then waits."""
    path = tmp_path / "program"
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho end\nexec sleep 60\n')
    path.chmod(0o755)
    return ServerBinary(path, None)


def start(tmp_path: Path, *secrets: str) -> ServerProcess:
    log = tmp_path / "log"
    process = ServerProcess(echo(tmp_path), ["--plain"], {"OTHER": "1"}, log, append=False, sealed=secrets)
    deadline = time.monotonic() + 30
    while "end" not in log.read_text():
        assert time.monotonic() < deadline, f"the program said {log.read_text()!r}"
        time.sleep(0.005)
    return process


def test_program_reads_what_its_command_line_does_not_show(tmp_path: Path) -> None:
    process = start(tmp_path, SECRET, "--second=ü")
    try:
        command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert SECRET.encode() not in command_line
        assert (tmp_path / "log").read_text().split()[-3:] == [SECRET, "--second=ü", "end"]
        assert "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text(), "it is still traced"
    finally:
        process.stop()


def test_placeholder_stands_where_the_option_is(tmp_path: Path) -> None:
    """Seen while the shell of the script still has the arguments it was started with."""
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\necho end\nread never\n")
    path.chmod(0o755)
    process = ServerProcess(ServerBinary(path, None), [], {}, tmp_path / "log", append=False, sealed=[SECRET])
    shown = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    process.stop()
    assert shown[-2:] == [PLACEHOLDER.encode(), b""]


def test_no_moment_shows_it(tmp_path: Path) -> None:
    """Every command line of the machine is read, as fast as can be, while programs start."""
    stop, seen = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            for entry in os.listdir("/proc"):  # noqa: PTH208  (as fast as can be)
                if entry.isdecimal():
                    try:
                        with open(f"/proc/{entry}/cmdline", "rb") as file:  # noqa: PTH123
                            if b"0123456789abcdef" in file.read():
                                seen.append(entry)
                    except OSError:
                        continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(20):
            start(tmp_path, SECRET).stop()
    finally:
        stop.set()
        thread.join()
    assert not seen


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user to look as one")
def test_another_user_can_read_neither(tmp_path: Path) -> None:
    process = start(tmp_path, SECRET)
    look = f"import sys; print(open('/proc/{process.pid}/' + sys.argv[1]).read())"
    try:
        found = {
            name: subprocess.run(
                ["/usr/bin/env", "python3", "-c", look, name], user=65534, group=65534, capture_output=True, text=True
            )
            for name in ("cmdline", "environ", "mem", "maps")
        }
    finally:
        process.stop()
    assert found["cmdline"].returncode == 0, "every user may read a command line; the test looks the wrong way"
    assert SECRET not in found["cmdline"].stdout
    for name in ("environ", "mem", "maps"):
        assert "Permission denied" in found[name].stderr


def test_machine_that_forbids_it_is_said_and_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(tritonserver, "wait_to_be_sealed", forbidden)
    with pytest.raises(CannotSeal, match="cannot be traced by its parent"):
        start(tmp_path, SECRET)
    assert not (tmp_path / "log").read_text()


def test_program_that_cannot_be_sealed_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def fails(pid: int, count: int) -> None:
        started.append(pid)
        raise ValueError("no such place")

    monkeypatch.setattr(sealed, "_redirect", fails)
    with pytest.raises(CannotSeal, match=r"cannot be sealed \(no such place"):
        start(tmp_path, SECRET)
    assert started and not Path(f"/proc/{started[0]}").exists()
    assert not (tmp_path / "log").read_text(), "it ran with the placeholder"


def test_server_starts_without_a_key_where_none_can_be_kept(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden() -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(tritonserver, "wait_to_be_sealed", forbidden)
    binary = tmp_path / "server"
    binary.write_text('#!/bin/sh\nprintf "%s\\n" "$@" | cut -c1-90\nexit 3\n')
    binary.chmod(0o755)
    log = tmp_path / "server.log"
    with pytest.raises(Exception, match="ended with exit status 3"):
        Server(repository, address=Address.free(), binary=binary, log=log).start()
    assert "closed to the launcher too" in caplog.text
    restricted = [line for line in log.read_text().splitlines() if line.startswith("--grpc-restricted")]
    assert len(restricted) == 1 and "model-repository,shared-memory" in restricted[0]


def test_files_of_the_process_are_for_its_user_alone(tmp_path: Path) -> None:
    """Also where the program opens them up by the very call that the server's shared memory is opened up with."""
    made = tmp_path / "made"
    code = f"import os; fd = os.open('{made}', 66, 0o644); os.fchmod(fd, 0o644)"
    path = tmp_path / "program"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    path.chmod(0o755)
    process = ServerProcess(ServerBinary(path, None), [], {}, tmp_path / "log", append=False)
    while process.is_running:
        time.sleep(0.01)
    assert process.epitaph().startswith("the server ended with exit status 0"), process.epitaph()
    assert made.stat().st_mode & 0o777 == 0o600


def test_other_modes_are_set_as_asked() -> None:
    code = """
import os, sys, tempfile
from fuserec.serve.private_memory import can_keep_private, keep_private
assert can_keep_private()
keep_private()
with tempfile.TemporaryFile() as file:
    for mode in (0o640, 0o755, 0o644, 0o600):
        os.fchmod(file.fileno(), mode)
        print(oct(os.fstat(file.fileno()).st_mode & 0o777))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0o640", "0o755", "0o755", "0o600"]
