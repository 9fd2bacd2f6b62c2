"""How long work takes: on a device by events around replays of a graph, from host to host by the clock of the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from bench.device._timing import Timing

Work = Callable[[], Any]


def captured(work: Work, device: str) -> Work:
    """Return what replays `work` from a CUDA graph; on the CPU `work` itself.

    Args:
        work: Puts work on the current stream, reads and writes memory that stays where it is, and never waits.
        device: "cuda", or "cpu" in a rehearsal.
    """
    if device == "cpu":
        return work
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, and allocates what stays
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def device_us(work: Work, device: str, repeats: int) -> float:
    """Return the microseconds that one of `repeats` turns took, by the device's own clock."""
    if device == "cpu":
        return host_us(work, repeats)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return 1e3 * float(begin.elapsed_time(end)) / repeats


def host_us(work: Work, repeats: int) -> float:
    """Return the microseconds that one of `repeats` turns took, each from its call to its answer."""
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return 1e6 * (time.perf_counter() - begin) / repeats


def interleaved(
    works: Mapping[str, Work], measure: Callable[[Work, int], float], *, seconds: float, most_rounds: int = 20
) -> dict[str, Timing]:
    """Time all by turns, so that what else the machine does falls on all of them.

    Args:
        works: What is timed, by name.
        measure: Microseconds of one turn, given the work and how many turns to take together.
        seconds: For all of them together, about.
        most_rounds: No more than so many, however short they are.
    """
    once = {name: measure(work, 1) for name, work in works.items()}
    once = {name: measure(work, 1) for name, work in works.items()}  # the first had to fetch and to load
    share = 1e6 * seconds / max(len(works), 1) / most_rounds
    repeats = {name: int(np.clip(share / max(took, 0.1), 1, 200)) for name, took in once.items()}
    a_round = sum(repeats[name] * took for name, took in once.items()) / 1e6
    rounds = int(np.clip(seconds / max(a_round, 1e-9), 3, most_rounds))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(measure(work, repeats[name]))
    return {name: _timing(values) for name, values in times.items()}


def _timing(values: list[float]) -> Timing:
    low, median, high = np.percentile(values, [25, 50, 75])
    return Timing(round(float(median), 2), round(float(high - low), 2), len(values))
