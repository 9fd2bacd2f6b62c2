"""What the models count of their own work, and the names under which Prometheus finds it.

The metrics stand beside Triton's on its metrics port (see `fuserec.serve.handover`). Server 2.51 knows counters and
gauges alone, so that a histogram is made of counters: `..._bucket` with the label `le`, `..._sum` and `..._count`.
This is what a histogram is to Prometheus in any case, and `histogram_quantile` works on it with every server.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fuserec.serve.tally import Metric, Tally

_MODEL: Final = ("model", "version")
_SECONDS: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

STAGE_SECONDS: Final = Metric(
    "fuserec_stage_seconds", "Seconds of a stage in one execution", ("stage", *_MODEL), bounds=_SECONDS
)
BATCH_ROWS: Final = Metric("fuserec_batch_rows", "Rows of one execution", _MODEL, bounds=_ROWS)
ROWS: Final = Metric("fuserec_rows_total", "Rows by what became of them", ("outcome", *_MODEL))
REQUESTS: Final = Metric("fuserec_requests_total", "Requests by what became of them", ("outcome", *_MODEL))
CERTIFIED: Final = Metric("fuserec_certified_total", "Searches that the first pass proved", ("version",))
REPAIRED: Final = Metric("fuserec_repaired_total", "Searches that had to be widened", ("version",))
UNKNOWN_IDS: Final = Metric("fuserec_unknown_ids_total", "Ids that the catalogue does not hold", _MODEL)
INDEX_CREATED: Final = Metric("fuserec_index_created_seconds", "Unix time of the export", ("version",), kind="gauge")
DEVICE: Final = Metric("fuserec_device", "1 for where a model of a version computes", ("device", *_MODEL), kind="gauge")
_PAIR: Final = ("version", "candidate")
SHADOW_OVERLAP: Final = Metric("fuserec_shadow_overlap_sum", "Shares of items in common, added up over rows", _PAIR)
SHADOW_ROWS: Final = Metric("fuserec_shadow_rows_total", "Rows that a shadow answered too", _PAIR)
SHADOW_SECONDS: Final = Metric("fuserec_shadow_seconds_sum", "Seconds that the shadow took for them", _PAIR)
SHADOW_DROPPED: Final = Metric(
    "fuserec_shadow_dropped_total", "Rows meant for a shadow that it was too far behind for", _PAIR
)
AB_ROWS: Final = Metric("fuserec_ab_rows_total", "Rows of an A/B experiment by the version that answered", ("version",))

METRICS: Final = (
    STAGE_SECONDS,
    BATCH_ROWS,
    ROWS,
    REQUESTS,
    CERTIFIED,
    REPAIRED,
    UNKNOWN_IDS,
    INDEX_CREATED,
    DEVICE,
    SHADOW_OVERLAP,
    SHADOW_ROWS,
    SHADOW_SECONDS,
    SHADOW_DROPPED,
    AB_ROWS,
)

# Stages: those of the pipeline, and the execution from the arrival of the tensors to their departure.
ENCODE: Final = "encode"
SEARCH: Final = "search"
RANK: Final = "rank"
RULES: Final = "rules"
TOTAL: Final = "total"
STAGES: Final = (ENCODE, SEARCH, RANK, RULES, TOTAL)
# Outcomes of a row: by what is known of the user, by popularity, not at all because it asked for the impossible.
ANSWERED: Final = "answered"
FALLBACK: Final = "fallback"
REFUSED: Final = "refused"
OUTCOMES: Final = (ANSWERED, FALLBACK, REFUSED)
# Outcomes of a request: answered; refused, as it asked for the impossible or for more than it may; expired, as its time
# was over while it was answered; shed, as too many heavy ones waited; failed, by a fault of the model.
EXPIRED: Final = "expired"
SHED: Final = "shed"
FAILED: Final = "failed"
REQUEST_OUTCOMES: Final = (ANSWERED, REFUSED, EXPIRED, SHED, FAILED)

_REST: Final = "rest"
_ELSEWHERE: Final = "elsewhere"


class Stopwatch:
    """The seconds of each stage of one batch. A stage within another interrupts it: nothing counts twice.

    `with watch("search"): ...`; one thread at a time.
    """

    __slots__ = ("_running", "_since", "seconds")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    def __call__(self, stage: str) -> Stopwatch:
        """Begin a stage, which the `with` around the call ends."""
        self._charge()
        self._running.append(stage)
        return self

    def __enter__(self) -> None:
        """Do nothing: the call has begun the stage."""

    def __exit__(self, *_: object) -> None:
        self._charge()
        self._running.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            stage = self._running[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def take(self) -> dict[str, float]:
        """Return the seconds of each stage since the last time."""
        seconds, self.seconds = self.seconds, {}
        return seconds


class Watcher(Protocol):
    """Who is told what a pipeline does."""

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Return what takes the time of a stage."""

    def searched(self, certified: NDArray[np.bool_]) -> None:
        """Count B searches: (B,) bool, whether the first pass proved its answer."""


class Nobody:
    """Watches nothing, at no cost."""

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Take no time."""
        return nullcontext()

    def searched(self, certified: NDArray[np.bool_]) -> None:
        """Count nothing."""


@dataclass(frozen=True)
class Execution:
    """One execution: the rows that it answered, and the seconds of its stages with `total` among them."""

    rows: int
    seconds: dict[str, float]


class Telemetry:
    """What one version of a model counts of its work; used by one thread, the one that executes.

    Args:
        tally: Where it is added up.
        model: Name of the model.
        version: Number of the bundle.
        stages: What is timed beside the execution.
        created: UTC time of the export, ISO 8601; None where it is not to be told.
        device: `cpu` or `cuda`, where it computes; None likewise.
    """

    def __init__(
        self,
        tally: Tally,
        model: str,
        version: int,
        stages: Sequence[str] = (),
        created: str | None = None,
        device: str | None = None,
    ) -> None:
        name, number = model, str(version)
        self._watch = Stopwatch()
        self._now = 0
        self._stages = {stage: tally.histogram(STAGE_SECONDS, stage, name, number) for stage in (*stages, TOTAL)}
        self._rows = tally.histogram(BATCH_ROWS, name, number)
        self._answered, self._fallback, self._refused = (
            tally.number(ROWS, outcome, name, number) for outcome in OUTCOMES
        )
        self._requests = {outcome: tally.number(REQUESTS, outcome, name, number) for outcome in REQUEST_OUTCOMES}
        self._unknown = tally.number(UNKNOWN_IDS, name, number)
        self._certified = tally.number(CERTIFIED, number)
        self._repaired = tally.number(REPAIRED, number)
        if created is not None:
            tally.number(INDEX_CREATED, number).set(datetime.datetime.fromisoformat(created).timestamp())
        if device is not None:
            tally.number(DEVICE, device, name, number).set(1.0)

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Return what takes the time of a stage; not that of another within it."""
        return self._watch(stage)

    def executing(self) -> AbstractContextManager[None]:
        """Return what takes the time of an execution beside its stages; `executed` follows."""
        return self._watch(_REST)

    def elsewhere(self) -> AbstractContextManager[None]:
        """Return what takes time that is no part of the total: somebody else is at work for some of the rows."""
        return self._watch(_ELSEWHERE)

    def executed(self) -> Execution:
        """Count an execution that is over, unless it answered nobody, and return what it was."""
        rows, self._now = self._now, 0
        seconds = self._watch.take()
        seconds.pop(_ELSEWHERE, None)
        total = sum(seconds.values())
        seconds.pop(_REST, None)
        seconds[TOTAL] = total
        if rows:
            self._rows.observe(rows)
            for stage, taken in seconds.items():
                if stage in self._stages:
                    self._stages[stage].observe(taken)
        return Execution(rows, seconds)

    def answered(self, rows: int, fallback: int = 0, unknown_ids: int = 0) -> None:
        """Count rows that were answered: how many by popularity, and the ids in them that nobody knows."""
        self._now += rows
        self._answered.add(rows - fallback)
        self._fallback.add(fallback)
        self._unknown.add(unknown_ids)

    def refused(self, rows: int) -> None:
        """Count a request, of some rows, that asked for the impossible."""
        self._refused.add(rows)
        self.ended(REFUSED)

    def ended(self, outcome: str, requests: int = 1) -> None:
        """Count requests by their outcome."""
        self._requests[outcome].add(requests)

    def searched(self, certified: NDArray[np.bool_]) -> None:
        """Count B searches: (B,) bool, whether the first pass proved its answer."""
        proven = int(np.count_nonzero(certified))
        self._certified.add(proven)
        self._repaired.add(len(certified) - proven)
