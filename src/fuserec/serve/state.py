"""Notes about the servers running on this machine, so that `fuserec recommend` finds their catalogue."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuserec.files import replacing_file
from fuserec.serve.launcher import Address


def state_folder() -> Path:
    """Return the folder for such notes and for server logs: `$XDG_STATE_HOME/fuserec`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fuserec"


@contextlib.contextmanager
def noted(address: Address, repository: Path) -> Iterator[None]:
    """Keep a note of a server for as long as the context lasts."""
    note = _note(address.grpc_port)
    with replacing_file(note) as temporary:
        temporary.write_text(json.dumps({"repository": str(repository), "host": address.host, "ports": address.ports}))
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def repository_of(port: int) -> Path | None:
    """Return the repository of the server of this machine that listens on `port`; None where no note says."""
    document = _read(port)
    return Path(document["repository"]) if document else None


def metrics_url_of(port: int) -> str | None:
    """Return where the server of this machine that listens on `port` tells its metrics; None where no note says."""
    document = _read(port)
    return f"http://{document['host']}:{document['ports']['metrics']}" if document else None


def _read(port: int) -> dict[str, Any] | None:
    for note in _note(port).parent.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            document: dict[str, Any] = json.loads(note.read_text())
            if port in document["ports"].values() and {"repository", "host"} <= document.keys():
                return document
    return None


def _note(port: int) -> Path:
    return state_folder() / "servers" / f"{port}.json"
