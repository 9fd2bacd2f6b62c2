"""How long one call of a graph takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from fuserec.export.parts import Part
from fuserec.serve.engines import OnnxRuntimeEngine

ROUNDS: Final = 60
WARM_UP: Final = 5
# A part that takes longer than this is timed in fewer rounds.
BUDGET_S: Final = 2.0


def latencies_ms(graphs: Sequence[Path], part: Part) -> list[float]:
    """Return the median time of a call with one real row, one thread, for each graph.

    The graphs take turns, so that what else the machine does falls on all of them alike.
    """
    feed = {name: values[:1] for name, values in part.questions.feeds[0].items()}
    engines = [OnnxRuntimeEngine(graph) for graph in graphs]
    took: list[list[float]] = [[] for _ in graphs]
    start = time.perf_counter()
    for turn in range(WARM_UP + ROUNDS):
        for engine, times in zip(engines, took, strict=True):
            before = time.perf_counter()
            engine.run(feed)
            if turn >= WARM_UP:
                times.append((time.perf_counter() - before) * 1e3)
        if turn > WARM_UP and time.perf_counter() - start > BUDGET_S * len(graphs):
            break
    return [float(np.median(times)) for times in took]
