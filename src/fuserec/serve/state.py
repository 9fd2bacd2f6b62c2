"""Notes about the servers running on this machine: where they listen, over which repository, what they serve.

`fuserec recommend` finds the catalogue by them, and `fuserec publish` waits in them for the word of a server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fuserec.client import Endpoint, is_this_machine
from fuserec.errors import InvalidRequest, UsageError
from fuserec.files import replacing_file
from fuserec.serve.launcher import Address

logger = logging.getLogger(__name__)

_EVERY_ADDRESS: Final = ("0.0.0.0", "::", "")
# Names that mostly lead to one server; 127.0.0.2 is an address of its own.
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Refused:
    """Why a version is not served; `at_s` is of the clock that only grows, which all processes here share."""

    reason: str
    at_s: float


@dataclass(frozen=True)
class Status:
    """What a server does about versions.

    Attributes:
        served: The version that answers.
        candidate: The version that it is turning to; None for none.
        doing: How far it is with that.
        refused: Versions that are not served though they were wanted: why, and since when.
        experiment: The one that was asked for (`kind`, `version`, `share`), its `state` (`waiting`, `opening`,
            `running`, `refused`, `failed`) and the `reason` of it; None where there is none.
        refusals: How often a version was refused since the launcher began.
    """

    served: int
    candidate: int | None = None
    doing: str | None = None
    refused: dict[str, Refused] = field(default_factory=dict)
    experiment: dict[str, object] | None = None
    refusals: int = 0


@dataclass(frozen=True)
class Note:
    """What a note says of a server; `status` is None before its supervisor has begun, `told_at_s` is monotonic."""

    repository: Path
    host: str
    ports: dict[str, int]
    pid: int
    status: Status | None
    told_at_s: float


def state_folder() -> Path:
    """Return the folder for such notes and for server logs: `$XDG_STATE_HOME/fuserec`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fuserec"


class Notebook:
    """The note of one server, kept up to date; serving does not depend on it.

    Args:
        address: Where the server listens.
        repository: What it serves.
    """

    def __init__(self, address: Address, repository: Path) -> None:
        self._address, self._repository = address, repository
        self._path = _note(address)
        self._works = True

    def write(self, status: Status | None = None) -> None:
        """Replace the note."""
        document = {
            "repository": str(self._repository),
            "host": self._address.host,
            "ports": self._address.ports,
            "pid": os.getpid(),
            "told_at_s": time.monotonic(),
            "status": None if status is None else dataclasses.asdict(status),
        }
        try:
            with replacing_file(self._path) as temporary:
                temporary.write_text(json.dumps(document))
        except OSError as error:
            if self._works:
                logger.warning(
                    "no note about this server can be kept in %s (%s), so `fuserec publish` and `recommend` do not "
                    "find it; XDG_STATE_HOME names another folder",
                    self._path.parent,
                    error.strerror,
                )
            self._works = False

    def remove(self) -> None:
        """Take the note away, if it is this server's."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            if json.loads(self._path.read_bytes())["pid"] == os.getpid():
                self._path.unlink()


@contextlib.contextmanager
def noted(address: Address, repository: Path) -> Iterator[Notebook]:
    """Keep a note of a server for as long as the context lasts."""
    notebook = Notebook(address, repository)
    notebook.write()
    try:
        yield notebook
    finally:
        notebook.remove()


def log_file(address: Address) -> Path | None:
    """Return the file for the log of the server at an address; None where no file can be written there."""
    path = state_folder() / f"server-{_name(address)}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
    except OSError as error:
        logger.warning("no log can be written to %s (%s); see --log and XDG_STATE_HOME", path, error.strerror)
        return None
    return path


def notes() -> list[Note]:
    """Return what is noted of servers whose launchers run."""
    return [note for path in _notes() if (note := _read(path)) is not None and _runs(note.pid)]


def note_of(url: str) -> Note | None:
    """Return what is noted of the server of this machine that `host:port` or a URL leads to; None for none."""
    try:
        endpoint = Endpoint.parse(url)
    except InvalidRequest:
        return None
    here = (note for note in notes() if endpoint.port in note.ports.values())
    return next((note for note in here if _leads_to(endpoint.host, note.host)), None)


def repository_of(url: str) -> Path | None:
    """Return the repository of the server of this machine that a URL leads to; None where no note says."""
    note = note_of(url)
    return note.repository if note else None


def _leads_to(host: str, listening: str) -> bool:
    """Return whether a caller of `host` reaches a server of this machine that listens on `listening`."""
    if listening in _EVERY_ADDRESS:
        return is_this_machine(host)
    return host == listening or {host, listening} <= _THIS_MACHINE


def _notes() -> list[Path]:
    try:
        return sorted((state_folder() / "servers").glob("*.json"))
    except (OSError, RuntimeError):  # no such folder, or nobody's home
        return []


def _read(path: Path) -> Note | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        document: dict[str, Any] = json.loads(path.read_bytes())
        ports = {str(name): int(port) for name, port in document["ports"].items()}
        status = document["status"]
        return Note(
            Path(document["repository"]),
            str(document["host"]),
            ports,
            int(document["pid"]),
            None if status is None else _status(status),
            float(document["told_at_s"]),
        )
    return None


def _status(document: dict[str, Any]) -> Status:
    refused = {version: Refused(**why) for version, why in document["refused"].items()}
    return Status(**{**document, "refused": refused})


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _name(address: Address) -> str:
    """Return what files of a server are called; two may listen on one port of different addresses."""
    host = "" if address.host in _THIS_MACHINE else f"{address.host.replace(':', '_')}-"
    return f"{host}{address.grpc_port}"


def _note(address: Address) -> Path:
    try:
        return state_folder() / "servers" / f"{_name(address)}.json"
    except RuntimeError as error:
        raise UsageError(f"no home directory is known ({error}); give XDG_STATE_HOME a folder") from None
