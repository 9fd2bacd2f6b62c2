"""Numbers that one process adds up: plain additions, read by another thread from time to time.

A tally is not locked: each of its numbers is written by one thread. Who reads it meanwhile sees an observation of a
histogram in its sum and not yet in its count, or the other way round, and both the next time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, TypeVar

Kind = Literal["counter", "gauge"]


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        name: As Prometheus has it; of a histogram the part before `_bucket`, `_sum` and `_count`.
        about: One line for whoever reads it.
        labels: Names of what tells its series apart.
        kind: Whether it only grows. A histogram is made of counters.
        bounds: Upper bounds of the buckets of a histogram, ascending; empty for a single number.
    """

    name: str
    about: str
    labels: tuple[str, ...]
    kind: Kind = "counter"
    bounds: tuple[float, ...] = ()

    @property
    def series(self) -> dict[str, frozenset[str]]:
        """What is exported: the name of each series to the names of its labels."""
        labels = frozenset(self.labels)
        if not self.bounds:
            return {self.name: labels}
        return {f"{self.name}_bucket": labels | {"le"}, f"{self.name}_sum": labels, f"{self.name}_count": labels}


class Sample(NamedTuple):
    """A number as Prometheus has it: the labels are pairs of name and value, `value` the total so far."""

    name: str
    about: str
    kind: Kind
    labels: tuple[tuple[str, str], ...]
    value: float


class Number:
    """A counter, or a gauge where it is `set`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count."""
        self.value += amount

    def set(self, value: float) -> None:
        """Say what it is now."""
        self.value = value


class Histogram:
    """How often what was observed lay between two bounds."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value, which belongs to the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def totals(self) -> Iterator[tuple[str, tuple[tuple[str, str], ...], float]]:
        """Yield the ending of the name, the label of the bucket if it is one, and the total of each series."""
        below = list(accumulate(self._counts))
        for bound, total in zip((*map(repr, self._bounds), "+Inf"), below, strict=True):
            yield "_bucket", (("le", bound),), total
        yield "_sum", (), self._sum
        yield "_count", (), below[-1]


_Key = tuple[Metric, tuple[str, ...]]
_Kept = TypeVar("_Kept")


class Tally:
    """The numbers of one process, each made when it is first asked for."""

    def __init__(self) -> None:
        self._numbers: dict[_Key, Number] = {}
        self._histograms: dict[_Key, Histogram] = {}
        self._beside: list[Tally] = []

    def beside(self) -> Tally:
        """Return a tally for another thread, whose totals are added to these when they are read."""
        self._beside.append(Tally())
        return self._beside[-1]

    def number(self, metric: Metric, *values: str) -> Number:
        """Return the counter or gauge whose labels have these values, in the order of the metric's."""
        return _kept(self._numbers, metric, values, Number)

    def histogram(self, metric: Metric, *values: str) -> Histogram:
        """Return the histogram whose labels have these values, in the order of the metric's."""
        return _kept(self._histograms, metric, values, lambda: Histogram(metric.bounds))

    def samples(self) -> Iterator[Sample]:
        """Yield every number with its total."""
        if not self._beside:
            yield from self._samples()
            return
        totals: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
        for tally in (self, *self._beside):
            for sample in tally.samples() if tally is not self else tally._samples():
                before = totals.get((sample.name, sample.labels))
                value = sample.value + (before.value if before and sample.kind == "counter" else 0.0)
                totals[sample.name, sample.labels] = sample._replace(value=value)
        yield from totals.values()

    def _samples(self) -> Iterator[Sample]:
        # Copies: other threads may ask for a new number meanwhile.
        for (metric, values), number in self._numbers.copy().items():
            yield Sample(metric.name, metric.about, metric.kind, _pairs(metric, values), number.value)
        for (metric, values), histogram in self._histograms.copy().items():
            for ending, bucket, total in histogram.totals():
                labels = _pairs(metric, values) + bucket
                yield Sample(metric.name + ending, metric.about, metric.kind, labels, total)


def _kept(kept: dict[_Key, _Kept], metric: Metric, values: tuple[str, ...], make: Callable[[], _Kept]) -> _Kept:
    if len(values) != len(metric.labels):
        raise ValueError(f"{metric.name} came with labels {values}, expected {metric.labels}")
    return kept.setdefault((metric, values), make())


def _pairs(metric: Metric, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(metric.labels, values, strict=True))
