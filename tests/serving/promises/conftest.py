"""Servers that the tests may hurt: one that is watched and brought back, and one with a short queue."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bench._raw import Reply
from fuserec.serve.launcher import Address, Server
from fuserec.serve.supervisor import Supervisor, Watch
from tests.serving.promises.raw import REFUSED, items, message, send_grpc, wait_until

LONG_S = 120.0


@dataclass
class Supervised:
    """A server under a supervisor, and what that has said."""

    server: Server
    events: list[str]
    replies: dict[str, Reply] = field(default_factory=dict)

    def suffer(self, name: str, send: Callable[[Server], Reply]) -> Reply:
        """Send something once, however often it is asked for; return the reply once all is as it was before."""
        if name not in self.replies:
            before = items(self.server)
            self.events.clear()
            self.replies[name] = reply = send(self.server)
            if reply.status not in REFUSED:
                wait_until(lambda: any("again after" in event for event in self.events), f"recovery: {name}", LONG_S)
            wait_until(lambda: send_grpc(self.server, message()).is_ok, f"an answer after {name}")
            assert items(self.server) == before, f"other items after {name}"
        return self.replies[name]


@pytest.fixture(scope="session")
def supervised(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("supervised") / "repository"))
    stop, events = threading.Event(), []
    with Server(copy, address=Address.free()) as server:
        supervisor = Supervisor(server, Watch(tick_s=0.1, canary_s=1.0, first_backoff_s=0.1), events.append)
        thread = threading.Thread(target=supervisor.run, args=(stop,))
        thread.start()
        try:
            yield Supervised(server, events)
        finally:
            stop.set()
            thread.join()
