"""What a server makes of malformed requests: `python -m bench.malformed --repository DIR`.

Each must be refused by a typed error, or, where its bytes are no HTTP, have its connection closed; some are valid by
accident. Afterwards the server must answer as before and hold on to nothing more.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import itertools
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench._footprint import Footprint
from bench._malformed import Malformed, good, malformed
from bench._output import add_output_options, log, report
from bench._raw import GRPC, HTTP, Reply, connections
from fuserec.contract import ENCODE, EXPLAIN, RECOMMEND
from fuserec.errors import LaunchError
from fuserec.serve.launcher import Address, Server

# The rest must be nought.
_FINE: Final = ("answered", "refused", "closed")
_OUTCOMES: Final = (*_FINE, "untyped", "raised", "died", "silent")
_SAMPLES: Final = 40
_TIMEOUT_S: Final = 5.0
# Bytes of the server's memory a request, over the second half of the run: a leaked buffer a request would be more.
_MAX_SLOPE: Final = 64.0
# Memory that a short run cannot tell from what an allocator keeps.
_SLACK_BYTES: Final = 16 * 2**20


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.malformed", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, required=True, help="repository to serve")
    parser.add_argument("--count", type=int, default=100_000, help="requests")
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    parser.add_argument("--workers", type=int, default=4, help="requests at a time")
    add_output_options(parser)
    return parser.parse_args(arguments)


def outcome(request: Malformed, reply: Reply | None) -> str:
    """Return what became of a request; None for a reply that did not come."""
    if reply is None or reply.status == "DEADLINE_EXCEEDED":
        return "silent"
    if reply.is_ok:
        return "answered"
    if reply.status == "CLOSED":
        return "closed"
    said = reply.body.decode(errors="replace")
    if "not healthy" in said or "failed to connect" in said:
        return "died"
    if "Failed to process the request" in said:
        return "raised"  # an exception of our own model, which fails the whole batch
    if request.data.startswith(b"HEAD ") and reply.status[0] in "45":
        return "refused"  # has no body by definition
    return "refused" if reply.error and reply.status not in ("UNKNOWN", "OK") else "untyped"


def send(request: Malformed, grpc_side: GRPC, http_side: HTTP) -> Reply | None:
    """Send a request; None where no reply came."""
    try:
        if request.protocol == "grpc":
            return grpc_side.send(request.data)
        return http_side.send(request.data, end=request.cut)
    except TimeoutError:
        return None
    except ConnectionRefusedError as error:
        raise LaunchError(f"the server is gone: {error}") from None


class Flood:
    """Sends the requests of a seed to a server, and counts what becomes of them.

    Attributes:
        counts: Requests by protocol, kind and outcome.
        faults: The first few that met none of the outcomes they may: their places, outcomes and replies.
        samples: Requests sent and the footprint by then.
    """

    def __init__(self, server: Server, count: int, seed: int, workers: int) -> None:
        self._server, self._count, self._seed, self._workers = server, count, seed, workers
        self._places = itertools.count()
        self._lock = threading.Lock()
        self.counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.faults: list[str] = []
        self.samples: list[tuple[int, Footprint]] = []

    def run(self) -> None:
        """Send all of them.

        Raises:
            LaunchError: The server is gone.
        """
        console = Console(stderr=True)
        with Progress(console=console) as bar, concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            task = bar.add_task("malformed requests", total=self._count)
            for each in [pool.submit(self._work, lambda: bar.advance(task)) for _ in range(self._workers)]:
                each.result()

    def _work(self, advance: Any) -> None:
        with connections(self._server.address, _TIMEOUT_S) as (grpc_side, http_side):
            while (place := next(self._places)) < self._count:
                request = malformed(self._seed, place)
                reply = send(request, grpc_side, http_side)
                self._count_one(place, request, outcome(request, reply), reply)
                advance()

    def _count_one(self, place: int, request: Malformed, became: str, reply: Reply | None) -> None:
        with self._lock:
            self.counts[request.protocol, request.kind, became] += 1
            if became not in _FINE and len(self.faults) < 20:
                self.faults.append(f"request {place} ({request.protocol}, {request.kind}): {became}: {reply}")
            if place % max(1, self._count // _SAMPLES) == 0:
                self.samples.append((place, Footprint.of(self._server.pid)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a line for each protocol and kind."""
        for protocol, kind in sorted({key[:2] for key in self.counts}):
            cells = {each: self.counts[protocol, kind, each] for each in _OUTCOMES}
            yield {"protocol": protocol, "kind": kind, "requests": sum(cells.values()), **cells}

    def growth(self) -> list[str]:
        """Return what the server holds on to, over the second half of the run; empty where it is nothing."""
        half = sorted(self.samples, key=lambda sample: sample[0])[len(self.samples) // 2 :]
        places = [place for place, _ in half]
        first, last = half[0][1], half[-1][1]
        found = []
        for name in ("server_bytes", "models_bytes"):
            slope = float(np.polyfit(places, [getattr(footprint, name) for _, footprint in half], 1)[0])
            log(f"{name}: {getattr(last, name) / 2**20:.1f} MB, {slope:+.2f} bytes a request over the second half")
            if slope > _MAX_SLOPE and slope * (places[-1] - places[0]) > _SLACK_BYTES:
                found.append(f"{name} grew by {slope:.0f} bytes a request, at most {_MAX_SLOPE:.0f} were expected")
        for name in ("files", "threads", "processes", "shm_files", "shm_bytes"):
            before, after = (max(getattr(each, name) for _, each in part) for part in (half[: len(half) // 2], half))
            log(f"{name}: {getattr(first, name)} and {getattr(last, name)}, at most {after}")
            # A sample may find a connection of each worker that the server has not closed yet.
            if getattr(last, name) > before + (self._workers if name == "files" else 0):
                found.append(f"{name} grew from {before} to {getattr(last, name)}")
        return found


def answers(server: Server) -> list[Reply]:
    """Return what is answered to well-formed requests."""
    with GRPC(server.address) as grpc_side:
        return [grpc_side.send(good(model)) for model in (RECOMMEND, ENCODE, EXPLAIN)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, what grew, and what went wrong; the status is 1 where something did."""
    options = parse(arguments)
    with Server(options.repository, address=Address.free()) as server:
        before = answers(server)
        flood = Flood(server, options.count, options.seed, options.workers)
        problems: list[str] = []
        try:
            flood.run()
        except LaunchError as error:
            problems.append(str(error))
        report(flood.rows(), csv_path=options.csv, as_json=options.json)
        if not server.is_running:
            problems.append(server.epitaph())
        elif answers(server) != before:
            problems.append("the server answers otherwise than before")
        else:
            problems += flood.growth()
    problems += flood.faults
    for problem in problems:
        log(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
