"""Limits of a request: how they are set and told to a model, what they refuse, and what counts as heavy."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fuserec.errors import UsageError
from fuserec.rules import Rules
from fuserec.serve.deadlines import Deadline, DeadlineExpired
from fuserec.serve.heavy import HeavyLane, Job
from fuserec.serve.limits import PARAMETER, Estimate, Limits
from fuserec.serve.query import Query
from fuserec.serve.settings import ServingConfig
from fuserec.serve.tally import Tally
from fuserec.serve.telemetry import REQUESTS
from fuserec.serve.users import NO_IDS

LABELS = ("answered", "recommend", "1")


def query(k: int = 10, **rules: object) -> Query:
    return Query(5, NO_IDS, NO_IDS, k, rules=Rules(**rules))  # type: ignore[arg-type]


def test_limits_reach_a_model_in_its_configuration() -> None:
    settings = ServingConfig.parse(["max_k=50", "max_request_ms=250.5", "instances=3"])
    text = settings.complete('name: "recommend"', "recommend", ["recommend"])
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    settings.apply(config, "recommend", ["recommend"])
    told = {"parameters": {PARAMETER: {"string_value": config.parameters[PARAMETER].string_value}}}
    assert Limits.of_config(told) == Limits(max_k=50, max_request_ms=250.5)
    assert Limits.of_config({}) == Limits(), "a configuration from before has none"
    assert set(json.loads(Limits().to_parameter())) == set(Limits.__dataclass_fields__)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("max_k=0", "invalid max_k=0: must be 1 to 10000"),
        ("max_k=10001", "invalid max_k=10001: must be 1 to 10000"),
        ("max_rows=65", "must be 1 to 64"),
        ("max_rule_items=0", "invalid max_rule_items=0: must be at least 1"),
        ("max_request_ms=inf", "invalid max_request_ms=inf: must be a positive number of milliseconds"),
        ("heavy_queue=0", "must be at least 1"),
    ],
)
def test_limits_out_of_range_are_refused(setting: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ServingConfig.parse([setting])


def test_rows_count_together() -> None:
    limits = Limits(max_items=30, max_diverse_items=12)
    limits.check([query(), query(), query()])
    with pytest.raises(ValueError, match="invalid sum of k=31: must be at most 30 .max_items."):
        limits.check([query(), query(), query(11)])
    with pytest.raises(ValueError, match="invalid sum of k=20 with diversity: must be at most 12 .max_diverse_items."):
        limits.check([query(diversity=0.1), query(diversity=0.1)])


def test_work_is_estimated_by_what_makes_it() -> None:
    estimate = Estimate(500_000, 64)
    plain = estimate([query()])
    for name, dearer in {
        "rules": [query(caps={"*": 2})],
        "an allow list": [Query(5, NO_IDS, NO_IDS, 10, allow=np.arange(3))],
        "many items": [query(10_000)],
        "many rows": [query()] * 64,
    }.items():
        assert estimate(dearer) > 2 * plain, name
    assert estimate([query(diversity=0.5)]) > estimate([query(caps={"*": 2})])
    assert Estimate(1_000, 64)([query(caps={"*": 2})]) < 0.1, "rules over a small catalogue are no burden"


def test_a_deadline_is_the_shorter_of_two_and_ends_when_the_caller_goes() -> None:
    now, gone, polls = [100.0], [False], []

    def is_cancelled() -> bool:
        polls.append(now[0])
        return gone[0]

    assert Deadline.of(0, 500.0, lambda: False).reason is None
    assert "1000 ms (timeout of the request)" in str(Deadline(1.0, "timeout of the request", clock=Clock(0, 2)).reason)
    deadline = Deadline(10.0, "max_request_ms", is_cancelled, lambda: now[0])
    deadline.check()
    assert not polls, "nobody is asked for so short a time"
    now[0] += 0.03
    deadline.check()
    deadline.check()
    assert len(polls) == 1, "a message takes its time, too"
    now[0] += 0.03
    gone[0] = True
    with pytest.raises(DeadlineExpired, match="the caller has gone"):
        deadline.check()
    with pytest.raises(DeadlineExpired):
        deadline.check()


class Clock:
    """Tells one time after the other, the last for ever."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)

    def __call__(self) -> float:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def test_the_lane_answers_in_order_small_ones_together_and_drains() -> None:
    go, answered = threading.Event(), []

    def answer(requests: Sequence[int]) -> None:
        assert go.wait(30)
        answered.append(list(requests))

    lane: HeavyLane[int] = HeavyLane(answer, capacity=4)
    for number, estimate in enumerate([10.0, 10.0, 1_000.0, 10.0]):
        assert lane.put(Job(number, 1, estimate))
    assert not lane.put(Job(4, 1, 1.0)), "five in a lane for four"
    lane.start()
    go.set()
    lane.stop()
    assert answered == [[0, 1], [2], [3]]
    assert not lane.put(Job(5, 1, 1.0)), "taken after the end"


def test_what_another_thread_counts_is_added_when_it_is_read() -> None:
    tally = Tally()
    beside = tally.beside()
    tally.number(REQUESTS, *LABELS).add(2)
    beside.number(REQUESTS, *LABELS).add(3)
    beside.number(REQUESTS, "expired", *LABELS[1:]).add()
    found = {sample.labels[0][1]: sample.value for sample in tally.samples()}
    assert found == {"answered": 5, "expired": 1}
