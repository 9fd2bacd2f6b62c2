"""What is counted, in which bucket, at what cost, and that the differences handed over add up."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from fuserec.serve import telemetry
from fuserec.serve.handover import Handover
from fuserec.serve.tally import Metric, Sample, Tally
from fuserec.serve.telemetry import STAGES, Stopwatch, Telemetry


class Paper:
    """A ledger on paper; `broken` refuses everything."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
        self.messages = 0
        self.broken = False

    def add(self, sample: Sample, amount: float) -> None:
        if self.broken:
            raise RuntimeError("no")
        self.messages += 1
        assert amount >= 0, f"the counter {sample.name} went down by {-amount}"
        self.values[sample.name, frozenset(sample.labels)] += amount

    def set(self, sample: Sample) -> None:
        self.messages += 1
        self.values[sample.name, frozenset(sample.labels)] = sample.value

    def __getitem__(self, asked: tuple[str, dict[str, str]]) -> float:
        name, labels = asked
        key = name, frozenset(labels.items())
        assert key in self.values, f"{name} has {[dict(pairs) for known, pairs in self.values if known == name]}"
        return self.values[key]


def test_histogram_counts_are_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    tally = Tally()
    histogram = tally.histogram(Metric("h", "", ("model",), bounds=(0.5, 1.0)), "a")
    for value in (0.1, 0.5, 0.75, 1.0, 3.0):
        histogram.observe(value)
    samples = {(sample.name, sample.labels): sample.value for sample in tally.samples()}
    model = ("model", "a")
    assert samples == {
        ("h_bucket", (model, ("le", "0.5"))): 2,
        ("h_bucket", (model, ("le", "1.0"))): 4,
        ("h_bucket", (model, ("le", "+Inf"))): 5,
        ("h_sum", (model,)): pytest.approx(5.35),
        ("h_count", (model,)): 5,
    }


def test_series_are_those_that_are_exported() -> None:
    tally = Tally()
    for metric in telemetry.METRICS:
        values = list(metric.labels)
        tally.histogram(metric, *values) if metric.bounds else tally.number(metric, *values)
    exported = {sample.name: {name for name, _ in sample.labels} for sample in tally.samples()}
    assert exported == {name: labels for metric in telemetry.METRICS for name, labels in metric.series.items()}


def test_a_label_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fuserec_rows_total came with labels \('answered',\), expected"):
        Tally().number(telemetry.ROWS, "answered")


def test_a_stage_within_another_interrupts_it() -> None:
    watch = Stopwatch()
    with watch("rules"):
        time.sleep(0.02)
        with watch("search"):
            time.sleep(0.05)
    seconds = watch.take()
    assert 0.02 <= seconds["rules"] < 0.05 <= seconds["search"]
    assert watch.take() == {}


def test_a_stage_that_fails_is_over() -> None:
    watch = Stopwatch()
    with pytest.raises(ValueError, match="no"), watch("search"):
        raise ValueError("no")
    with watch("rank"):
        pass
    assert watch.take().keys() == {"search", "rank"}


def test_what_a_model_counts() -> None:
    tally, paper = Tally(), Paper()
    told = Telemetry(tally, "recommend", 3, STAGES[:-1], created="2026-01-02T03:04:05+00:00")
    with told.executing():
        with told.timed("search"):
            time.sleep(0.003)
            told.searched(np.array([True, False, True]))
        with told.elsewhere():
            time.sleep(0.03)
    told.refused(2)
    told.answered(3, fallback=1, unknown_ids=7)
    execution = told.executed()
    assert execution.seconds.keys() == {"search", "total"}
    assert 0.003 <= execution.seconds["search"] <= execution.seconds["total"] < 0.03, "others' time is in the total"
    Handover(tally, paper).hand_over()
    model = {"model": "recommend", "version": "3"}
    assert paper["fuserec_stage_seconds_count", model | {"stage": "search"}] == 1
    assert paper["fuserec_stage_seconds_count", model | {"stage": "rank"}] == 0, "a stage that did not run"
    assert paper["fuserec_stage_seconds_sum", model | {"stage": "total"}] == pytest.approx(execution.seconds["total"])
    assert [paper["fuserec_batch_rows_bucket", model | {"le": le}] for le in ("2.0", "4.0", "+Inf")] == [0, 1, 1]
    rows = [paper["fuserec_rows_total", model | {"outcome": outcome}] for outcome in telemetry.OUTCOMES]
    assert rows == [2, 1, 2]
    assert paper["fuserec_certified_total", {"version": "3"}] == 2
    assert paper["fuserec_repaired_total", {"version": "3"}] == 1
    assert paper["fuserec_unknown_ids_total", model] == 7
    assert paper["fuserec_index_created_seconds", {"version": "3"}] == 1767323045


def test_processes_add_up_and_what_is_known_is_not_sent_again() -> None:
    paper, tallies = Paper(), (Tally(), Tally())
    handovers = [Handover(tally, paper) for tally in tallies]
    numbers = [tally.number(telemetry.AB_ROWS, "1") for tally in tallies]
    for amount in (1, 10):
        for number, handover in zip(numbers, handovers, strict=True):
            number.add(amount)
            handover.hand_over()
    assert paper["fuserec_ab_rows_total", {"version": "1"}] == 22
    sent = paper.messages
    handovers[0].hand_over()
    assert paper.messages == sent, "nothing was added, and it was said again"


def test_thread_goes_on_after_a_refusal_and_ends_with_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    paper, tally = Paper(), Tally()
    number = tally.number(telemetry.AB_ROWS, "1")
    handover = Handover(tally, paper, every_s=0.01)
    handover.start()
    paper.broken = True
    number.add(5)
    deadline = time.monotonic() + 10
    while "cannot be handed" not in caplog.text:
        assert time.monotonic() < deadline, "the refusal was not logged"
        time.sleep(0.01)
    time.sleep(0.05)
    assert caplog.text.count("cannot be handed") == 1
    paper.broken = False
    number.add(1)
    handover.stop()
    assert paper["fuserec_ab_rows_total", {"version": "1"}] == 6


def test_a_batch_costs_little() -> None:
    """20 us on two slow cores; the bound here leaves room for a machine that is busy."""
    told = Telemetry(Tally(), "recommend", 1, STAGES[:-1])
    proven = np.ones(8, dtype=bool)

    def batch() -> None:
        with told.executing():
            for stage in STAGES[:-1]:
                with told.timed(stage):
                    pass
            told.searched(proven)
        told.answered(8, 1, 0)
        told.executed()

    best = min(_seconds_of(batch) for _ in range(2_000))
    assert best < 100e-6, f"a batch cost {1e6 * best:.0f} us"


def _seconds_of(call: object) -> float:
    began = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began
