"""The process that sends the load: a line of JSON in says what, a line of JSON out says how it went.

It shares the cores with what it measures, so it does little: the bytes are made, nothing is parsed, and the garbage
collector rests while calls are under way. `python -m bench.serving._generate` is started by `generator.Generator`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import resource
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from bench.serving.callers import Caller, CallFailed, open_caller
from bench.serving.clock import Alarm
from bench.serving.load import Load, Outcome
from bench.serving.processes import cpu_seconds, tree
from bench.serving.workload import read_bodies


@dataclass
class _Record:
    """What happened, a number a call; moments are of `time.monotonic()`."""

    begun: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    lags: array[float] = field(default_factory=lambda: array("d"))
    failures: list[tuple[float, str]] = field(default_factory=list)

    async def one(self, call: Caller, body: bytes, due: float) -> None:
        """Send a call; what it takes counts from `due`, when it should have been sent."""
        sent = time.monotonic()
        try:
            await call(body)
        except CallFailed as error:
            self.failures.append((due, str(error)))
            return
        self.lags.append(sent - due)
        self.begun.append(due)
        self.ended.append(time.monotonic())


async def _closed(load: Load, call: Caller, bodies: list[bytes], record: _Record, end: float) -> None:
    """Let each of so many callers send its next call when the last one is answered."""
    supply = itertools.cycle(bodies)

    async def caller() -> None:
        while (now := time.monotonic()) < end:
            await record.one(call, next(supply), now)

    assert load.concurrency is not None
    await asyncio.gather(*(caller() for _ in range(load.concurrency)))


async def _open(load: Load, call: Caller, bodies: list[bytes], record: _Record, end: float) -> None:
    """Send calls at moments that know nothing of the answers: a Poisson process."""
    assert load.rate is not None
    rng = np.random.default_rng(load.seed)
    supply = itertools.cycle(bodies)
    due = time.monotonic()
    calls = set()
    with Alarm() as alarm:
        while (due := due + rng.exponential(1.0 / load.rate)) < end:
            await alarm.until(due)
            task = asyncio.create_task(record.one(call, next(supply), due))
            calls.add(task)
            task.add_done_callback(calls.discard)
        await asyncio.gather(*calls)


async def _run(load: Load) -> Outcome:
    bodies = list(read_bodies(Path(load.bodies)))
    # Every block of a workload would otherwise begin with the same calls.
    first = load.seed * 997 % len(bodies)
    bodies = bodies[first:] + bodies[:first]
    record, servers = _Record(), tree(load.server_pid)
    async with open_caller(load.protocol, load.port, load.timeout_s) as call:
        start = time.monotonic() + load.warm_s
        end = start + load.seconds
        marks: list[tuple[float, float, float]] = []

        def mark() -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            marks.append((time.monotonic(), usage.ru_utime + usage.ru_stime, cpu_seconds(servers)))

        handle = asyncio.get_running_loop().call_later(load.warm_s, mark)
        await (_closed if load.rate is None else _open)(load, call, bodies, record, end)
        handle.cancel()
        mark()
    if len(marks) < 2:
        raise RuntimeError("the load ended before its warm-up did")
    (began, own_began, server_began), (ended, own_ended, server_ended) = marks
    wall = ended - began
    return _summarize(record, start, wall, (own_ended - own_began) / wall, (server_ended - server_began) / wall)


def _summarize(record: _Record, start: float, wall: float, own: float, server: float) -> Outcome:
    begun, ended = np.array(record.begun), np.array(record.ended)
    counts = begun >= start
    took_ms, lags_ms = 1e3 * (ended - begun)[counts], 1e3 * np.array(record.lags)[counts]
    errors = Counter(reason for due, reason in record.failures if due >= start)
    p50, p90, p99 = np.percentile(took_ms, (50, 90, 99)).tolist() if len(took_ms) else [float("nan")] * 3
    return Outcome(
        answered=len(took_ms),
        errors=dict(errors),
        seconds=wall,
        qps=float((ended >= start).sum() / wall),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=float(took_ms.max()) if len(took_ms) else float("nan"),
        lag_p99_ms=float(np.percentile(lags_ms, 99)) if len(lags_ms) else float("nan"),
        generator_cores=own,
        server_cores=server,
    )


def main() -> None:
    """Answer one line after the other until the input ends."""
    gc.disable()
    for line in sys.stdin:
        outcome = uvloop.run(_run(Load(**json.loads(line))))
        gc.collect()
        sys.stdout.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
