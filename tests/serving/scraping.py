"""What a server's metrics port says, once it says it."""

from __future__ import annotations

import time
from collections.abc import Callable

from fuserec.serve.launcher import Server
from fuserec.top import Scrape


def scrape(server: Server) -> Scrape:
    return Scrape.fetch(f"http://127.0.0.1:{server.address.metrics_port}")


def wait_for(server: Server, condition: Callable[[Scrape], bool], what: str, within_s: float = 60.0) -> Scrape:
    deadline = time.monotonic() + within_s
    while not condition(found := scrape(server)):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}; ours are {_ours(found)}"
        time.sleep(0.1)
    return found


def settled(server: Server) -> Scrape:
    """Return a scrape with all that was asked before: the models hand over every second."""
    last: dict[str, float] = {}
    while (now := _ours(found := scrape(server))) != last:
        last = now
        time.sleep(2.0)
    return found


def _ours(found: Scrape) -> dict[str, float]:
    return {
        f"{name}{dict(pairs)}": value
        for (name, pairs), value in found.series.items()
        if name.startswith("fuserec_") and not name.endswith("_bucket") and value == value
    }
