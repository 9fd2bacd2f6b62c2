"""What was asked of a repository and what its servers said: `journal.jsonl` in its root, a line an event.

    {"time": "2026-11-28T12:00:00+00:00", "kind": "asked", "version": 3, "by": "ann@build-1", "why": "publish"}
    {"time": "2026-11-28T12:00:04+00:00", "kind": "served", "version": 3, "by": "shop-1:8001", "why": "publish"}

`asked` is written by `fuserec publish`, `rollback` and `traffic`, `served` and `refused` by the supervisor of a server
once the version has answered, or has not. A rollback goes back along the versions that were served, and a version is
pruned only if it is neither served nor what a rollback would go to. Servers that mount the repository read-only
write nothing here; where no server does, what was asked for stands for what was served.
"""

from __future__ import annotations

import dataclasses
import datetime
import getpass
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.records import from_json

FILE_NAME: Final = "journal.jsonl"
ASKED: Final = "asked"
SERVED: Final = "served"
REFUSED: Final = "refused"
PUBLISH: Final = "publish"
ROLLBACK: Final = "rollback"
SERVE: Final = "serve"
# A server that could not serve what was asked for and serves what was good before.
FALLBACK: Final = "fallback"
# Of an experiment, which is asked for and not served.
TRIALS: Final = ("shadow", "ab")
START: Final = "start"
# The events that are read: some ten thousand, of which the newest count.
_MAX_BYTES: Final = 2**20
_MAX_LINE: Final = 4_000


@dataclass(frozen=True)
class Event:
    """One line of the journal.

    Attributes:
        time: UTC, ISO 8601.
        kind: `asked`, `served` or `refused`.
        version: Which.
        by: `user@host` of who asked, `host:port` of the server that served or refused it.
        why: The command that it was asked by, or the reason of a refusal.
    """

    time: str
    kind: str
    version: int
    by: str
    why: str


def record(repository: Path, kind: str, version: int, why: str, by: str | None = None) -> None:
    """Add an event to the journal of a repository.

    Raises:
        OSError: It cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    event = Event(now, kind, version, by or operator(), why[: _MAX_LINE // 8])
    line = json.dumps(dataclasses.asdict(event)) + "\n"
    # Not blocking: a pipe in its place would never be opened.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(repository / FILE_NAME, flags, 0o644)
    try:
        # One write of an append: two writers do not mix. What a full disk cut off is ended by a line of its own.
        if os.write(fd, line.encode()) != len(line.encode()):
            os.write(fd, b"\n")
            raise OSError(28, os.strerror(28), str(repository / FILE_NAME))
    finally:
        os.close(fd)


def events(repository: Path) -> list[Event]:
    """Return what the journal holds, the oldest first; lines that are no events are passed over.

    Nothing that is served depends on it, so a journal that cannot be read holds nothing.
    """
    path = repository / FILE_NAME
    found = []
    try:
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_BYTES))
            lines = file.read(_MAX_BYTES).split(b"\n")
    except OSError:
        return []
    for line in lines:
        try:
            found.append(from_json(Event, json.loads(line)))
        except (ValueError, RecursionError):
            continue
    return found


def served_line(found: Sequence[Event]) -> list[int]:
    """Return the versions along which a rollback goes back, the one that is served now last.

    A version that is served after another is added; a rollback, and a server that falls back, take away what they
    leave.
    """
    servers_tell = any(event.kind == SERVED for event in found)
    line: list[int] = []
    last_asked: Event | None = None
    for event in found:
        if event.kind == ASKED:
            last_asked = event
        if event.kind != (SERVED if servers_tell else ASKED) or (event.kind == ASKED and event.why in TRIALS):
            continue
        is_back = event.why in (ROLLBACK, FALLBACK) or (
            last_asked is not None and (last_asked.why, last_asked.version) == (ROLLBACK, event.version)
        )
        if is_back and event.version in line:
            del line[len(line) - line[::-1].index(event.version) :]
        elif line[-1:] != [event.version]:
            line.append(event.version)
    return line


def known_good(found: Sequence[Event]) -> set[int]:
    """Return the versions whose last word from a server is that they were served."""
    return {version for version, kind in _last_words(found).items() if kind == SERVED}


def known_bad(found: Sequence[Event]) -> set[int]:
    """Return the versions whose last word from a server is that they were refused, and that never were served."""
    served = {event.version for event in found if event.kind == SERVED}
    return {version for version, kind in _last_words(found).items() if kind == REFUSED} - served


def protected(repository: Path) -> set[int]:
    """Return the versions that nobody may remove: what is served, and what a rollback would go to."""
    line = served_line(events(repository))
    before = [version for version in line if version != line[-1]]
    return {*line[-1:], *before[-1:]}


def _last_words(found: Sequence[Event]) -> dict[int, str]:
    return {event.version: event.kind for event in found if event.kind in (SERVED, REFUSED)}


def operator() -> str:
    """Return who runs this process, as `user@host`."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
