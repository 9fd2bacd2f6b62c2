"""The course of one call: attempts, pauses and hedges, on a clock that only tests move."""

import asyncio
import random

import pytest

from fuserec.client import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerOverloaded,
    ServerUnavailable,
)
from fuserec.client._client import Caller
from fuserec.client._policy import Deadline, run_blocking
from fuserec.client._wire import Answer, Message
from tests.client.fakes import ANSWER, FakeClock, FakeTransport

MESSAGE = Message("recommend", {}, {}, 1.0)
OTHER = Answer({}, "2", "fake://b")


def gone() -> ServerUnavailable:
    return ServerUnavailable("nobody listens")


class Rig:
    """A caller over a transport with a script."""

    def __init__(
        self, *script: tuple[float, object], endpoints: int = 2, retries: int = 2, hedge_after_s: float | None = None
    ) -> None:
        self.clock = FakeClock()
        self.transport = FakeTransport(self.clock, *script)
        self.caller = Caller(
            self.transport,
            endpoints,
            retries=retries,
            hedge_after_s=hedge_after_s,
            clock=self.clock,
            randomness=random.Random(3),
        )

    def call(self, total_s: float = 1.0) -> Answer:
        return run_blocking(self.caller.call(MESSAGE, Deadline(total_s, self.clock), lambda answer: answer))

    def outstanding(self) -> list[int]:
        return [health.outstanding for health in self.caller.balancer._healths]


def test_answer_of_the_first_attempt() -> None:
    rig = Rig((0.1, ANSWER))
    assert rig.call() is ANSWER
    assert rig.transport.given_s == [1.0] and not rig.transport.pauses


def test_unavailable_is_tried_elsewhere_within_the_deadline() -> None:
    rig = Rig((0.1, gone()), (0.2, gone()), (0.1, ANSWER))
    assert rig.call() is ANSWER
    first, second, _ = rig.transport.places
    assert first != second, "the second attempt went to the same endpoint"
    pauses, given = rig.transport.pauses, rig.transport.given_s
    assert given == pytest.approx([1.0, 0.9 - pauses[0], 0.7 - sum(pauses)]), "an attempt was given the wrong time"


@pytest.mark.parametrize(
    "error", [InvalidRequest("k"), ModelNotFound("x"), ServerFault("bug"), DeadlineExceeded("late")], ids=repr
)
def test_only_unavailable_is_repeated(error: Exception) -> None:
    rig = Rig((0.1, error), (0.1, ANSWER))
    with pytest.raises(type(error)) as caught:
        rig.call()
    assert caught.value is error and error.attempts == 1  # type: ignore[attr-defined]


def test_overload_is_unavailable_too() -> None:
    assert Rig((0.1, ServerOverloaded("queue full")), (0.1, ANSWER)).call() is ANSWER


def test_retries_are_counted() -> None:
    rig = Rig(*[(0.01, gone())] * 9, retries=3)
    with pytest.raises(ServerUnavailable) as caught:
        rig.call()
    assert caught.value.attempts == len(rig.transport.attempts) == 4
    none = Rig((0.01, gone()), retries=0)
    with pytest.raises(ServerUnavailable):
        none.call()
    assert none.outstanding() == [0, 0]


def test_no_retry_after_the_deadline() -> None:
    rig = Rig(*[(0.3, gone())] * 9, retries=100)
    begin = rig.clock.now
    with pytest.raises((ServerUnavailable, DeadlineExceeded)):
        rig.call(total_s=1.0)
    assert rig.clock.now - begin <= 1.0 + 1e-9, f"the call took {rig.clock.now - begin} s of 1 s"
    assert len(rig.transport.attempts) >= 3


def test_a_call_without_time_is_not_sent() -> None:
    rig = Rig((0.1, ANSWER))
    deadline = Deadline(1.0, rig.clock)
    rig.clock.now += 1.0
    with pytest.raises(DeadlineExceeded, match="the 1000 ms of the call had passed before it was sent"):
        run_blocking(rig.caller.call(MESSAGE, deadline, lambda answer: answer))
    assert not rig.transport.attempts


def test_outage_is_not_multiplied() -> None:
    rig = Rig(*[(0.0, gone())] * 10_000, retries=5)
    rig.caller.budget._per_second = 0
    for _ in range(2_000):
        with pytest.raises(ServerUnavailable):
            rig.call()
    extra = len(rig.transport.attempts) - 2_000
    assert extra <= 100 + 0.2 * 2_000, f"2000 calls in an outage made {extra} retries"


def test_dead_endpoint_costs_a_few_retries() -> None:
    rig = Rig()
    rig.transport.of_place = lambda place: (0.001, gone() if place == 0 else ANSWER)
    for _ in range(500):
        assert rig.call() is ANSWER
    failures = rig.transport.places.count(0)
    assert 3 <= failures <= 5, f"{failures} attempts went to the dead endpoint in {rig.clock.now - 1000:.1f} s"


def test_quick_answer_needs_no_hedge() -> None:
    rig = Rig((0.04, ANSWER), hedge_after_s=0.05)
    assert rig.call() is ANSWER
    assert len(rig.transport.attempts) == 1 and rig.outstanding() == [0, 0]


def test_hedge_wins_and_the_first_attempt_is_cancelled() -> None:
    rig = Rig((0.5, ANSWER), (0.02, OTHER), hedge_after_s=0.05)
    begin = rig.clock.now
    assert rig.call() is OTHER
    slow, hedge = rig.transport.attempts
    assert rig.clock.now - begin == pytest.approx(0.07)
    assert slow.place != hedge.place and slow.cancelled and not hedge.cancelled
    assert rig.transport.given_s == pytest.approx([1.0, 0.95]), "the hedge was given more time than was left"
    assert rig.outstanding() == [0, 0]


def test_first_attempt_wins_and_the_hedge_is_cancelled() -> None:
    rig = Rig((0.06, ANSWER), (0.5, OTHER), hedge_after_s=0.05)
    assert rig.call() is ANSWER
    assert [attempt.cancelled for attempt in rig.transport.attempts] == [False, True]
    assert rig.outstanding() == [0, 0]


def test_failure_of_one_leaves_the_other() -> None:
    rig = Rig((0.07, ServerFault("bug")), (0.05, ANSWER), hedge_after_s=0.05)
    assert rig.call() is ANSWER
    rig = Rig((0.10, ANSWER), (0.01, gone()), hedge_after_s=0.05)
    assert rig.call() is ANSWER
    assert rig.outstanding() == [0, 0]


def test_refusal_ends_the_call_at_once() -> None:
    rig = Rig((0.5, ANSWER), (0.01, InvalidRequest("k came as 0")), hedge_after_s=0.05)
    with pytest.raises(InvalidRequest) as caught:
        rig.call()
    assert caught.value.attempts == 2 and rig.transport.attempts[0].cancelled


def test_both_fail_and_the_call_is_repeated() -> None:
    rig = Rig((0.06, gone()), (0.05, gone()), (0.01, ANSWER), hedge_after_s=0.05)
    assert rig.call() is ANSWER
    assert len(rig.transport.attempts) == 3


def test_nobody_answers_before_the_deadline() -> None:
    rig = Rig((9, ANSWER), (9, ANSWER), hedge_after_s=0.05)
    begin = rig.clock.now
    with pytest.raises(DeadlineExceeded) as caught:
        rig.call(total_s=0.2)
    assert rig.clock.now - begin == pytest.approx(0.2) and caught.value.attempts == 2


def test_hedges_are_paid_from_the_budget() -> None:
    rig = Rig((0.2, ANSWER), hedge_after_s=0.05)
    while rig.caller.budget.withdraw():
        pass
    assert rig.call() is ANSWER
    assert len(rig.transport.attempts) == 1


def test_endpoint_that_hangs_is_left_out() -> None:
    """Its attempts never fail, because hedges overtake them."""
    rig = Rig(hedge_after_s=0.05)
    rig.transport.of_place = lambda place: (60 if place == 0 else 0.001, ANSWER)
    for _ in range(200):
        rig.call()
    hung = rig.transport.places.count(0)
    assert 3 <= hung <= 5, f"{hung} of 200 calls waited for the endpoint that hangs"


def test_interrupted_call_is_no_longer_outstanding() -> None:
    rig = Rig((0.1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        rig.call()
    assert rig.outstanding() == [0, 0]


def test_cancelled_call_is_no_longer_outstanding() -> None:
    rig = Rig((60, ANSWER), hedge_after_s=0.05)

    async def never(flights: object, timeout_s: object) -> list[object]:
        await asyncio.sleep(60)
        return []

    rig.transport.first = never  # type: ignore[method-assign, assignment]

    async def run() -> None:
        task = asyncio.create_task(rig.caller.call(MESSAGE, Deadline(1.0, rig.clock), lambda answer: answer))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert rig.outstanding() == [0, 0] and rig.transport.attempts[0].cancelled
