"""Deadlines, budgets, health and the choice of endpoints, on a clock that only tests move."""

import random
import threading

import pytest

from fuserec.client import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    ServerOverloaded,
    ServerUnavailable,
    Unauthorized,
)
from fuserec.client._policy import Attempt, Balancer, Deadline, RetryBudget, backoff_s, is_healthy, of_status
from tests.client.fakes import FakeClock


def balancer(count: int, clock: FakeClock) -> Balancer:
    return Balancer(count, clock=clock, randomness=random.Random(7))


def fail(balancer: Balancer, place: int, times: int = 3) -> None:
    """Let calls to an endpoint fail that were under way at the same time."""
    for _ in range(times):
        balancer.pick(tried=[other for other in range(9) if other != place])
    for _ in range(times):
        balancer.settle(Attempt(place, probe=False), False)


def places(balancer: Balancer, calls: int) -> list[int]:
    """Return where calls go that are answered at once."""
    attempts = []
    for _ in range(calls):
        attempts.append(balancer.pick())
        balancer.settle(attempts[-1], True)
    return [attempt.place for attempt in attempts]


def test_deadline_counts_down() -> None:
    clock = FakeClock()
    deadline = Deadline(0.5, clock)
    assert deadline.left_s() == 0.5
    clock.now += 0.75
    assert deadline.left_s() == -0.25 and deadline.total_s == 0.5


def test_budget_is_a_reserve_and_a_share_of_the_calls() -> None:
    budget = RetryBudget(share=0.2, reserve=3, per_second=0, clock=FakeClock())
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False], "the reserve is not 3 attempts"
    retries = 0
    for _ in range(1_000):
        budget.deposit()
        retries += budget.withdraw()
    assert 195 <= retries <= 200, f"1000 calls paid for {retries} retries, expected a fifth"


def test_budget_is_never_more_than_its_reserve() -> None:
    budget = RetryBudget(reserve=3, per_second=1, clock=(clock := FakeClock()))
    for _ in range(1_000):
        budget.deposit()
    clock.now += 1_000
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]


def test_budget_of_a_client_that_seldom_calls_fills_by_itself() -> None:
    budget = RetryBudget(reserve=3, per_second=0.5, clock=(clock := FakeClock()))
    while budget.withdraw():
        pass
    clock.now += 1.0
    assert not budget.withdraw()
    clock.now += 1.0
    assert budget.withdraw() and not budget.withdraw()


def test_backoff_is_full_jitter_within_growing_bounds() -> None:
    randomness = random.Random(0)
    for retry, bound in enumerate([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]):
        pauses = [backoff_s(retry, randomness) for _ in range(500)]
        assert max(pauses) <= bound, f"retry {retry} waits {max(pauses)} s"
        assert min(pauses) < 0.05 * bound and max(pauses) > 0.95 * bound, f"retry {retry} has no full jitter"
    assert backoff_s(10_000, randomness) <= 1.0


def test_calls_go_to_the_less_busy() -> None:
    chosen = balancer(2, FakeClock())
    counts = [0, 0]
    for _ in range(100):  # none is ever answered
        counts[chosen.pick().place] += 1
    assert abs(counts[0] - counts[1]) <= 1, f"outstanding calls are {counts}"


def test_idle_endpoints_share_the_calls() -> None:
    counts = [places(balancer(3, FakeClock()), 900).count(place) for place in range(3)]
    assert min(counts) > 250, f"900 calls one after the other went {counts}"


def test_next_attempt_goes_elsewhere() -> None:
    chosen = balancer(3, FakeClock())
    for _ in range(50):
        tried: list[int] = []
        for _ in range(3):
            tried.append(chosen.pick(tried).place)
        assert sorted(tried) == [0, 1, 2]
    assert balancer(1, FakeClock()).pick(tried=[0]).place == 0, "the only endpoint is tried again"


def test_success_forgives_failures() -> None:
    chosen = balancer(2, FakeClock())
    for _ in range(10):
        fail(chosen, 0, times=2)
        chosen.settle(chosen.pick(tried=[1]), True)
    assert set(places(chosen, 50)) == {0, 1}


def test_failing_endpoint_is_left_out_and_comes_back_by_one_call() -> None:
    clock = FakeClock()
    chosen = balancer(2, clock)
    fail(chosen, 0)
    assert set(places(chosen, 50)) == {1}
    clock.now += 0.99
    assert set(places(chosen, 50)) == {1}
    clock.now += 0.01
    probe = chosen.pick()
    assert (probe.place, probe.probe) == (0, True)
    assert set(places(chosen, 50)) == {1}, "more than one call was let through"
    chosen.settle(probe, True)
    assert set(places(chosen, 50)) == {0, 1}


def test_endpoint_that_fails_its_probes_is_left_out_for_longer() -> None:
    clock = FakeClock()
    chosen = balancer(2, clock)
    fail(chosen, 0)
    for expected_s in (1, 2, 4, 8, 16, 30, 30):
        clock.now += expected_s - 0.01
        assert set(places(chosen, 20)) == {1}, f"probed before {expected_s} s"
        clock.now += 0.01
        probe = chosen.pick()
        assert probe.probe, f"not probed after {expected_s} s"
        chosen.settle(probe, False)


def test_probe_that_was_given_up_is_made_again() -> None:
    clock = FakeClock()
    chosen = balancer(2, clock)
    fail(chosen, 0)
    clock.now += 1
    chosen.settle(chosen.pick(), None)
    assert chosen.pick().probe


def test_with_all_left_out_the_one_out_longest_is_tried() -> None:
    clock = FakeClock()
    chosen = balancer(3, clock)
    for place in (1, 2, 0):
        fail(chosen, place)
        clock.now += 0.1
    assert chosen.pick().place == 1
    assert chosen.pick(tried=[1]).place == 2
    assert chosen.pick(tried=[0, 1, 2]).place == 1
    chosen.settle(Attempt(1, probe=False), False)  # still down: the next call has better prospects elsewhere
    assert chosen.pick().place == 2
    chosen.settle(Attempt(2, probe=False), True)
    assert places(chosen, 10) == [2] * 10


def test_threads_may_share_a_balancer_and_a_budget() -> None:
    chosen, budget = Balancer(3), RetryBudget(reserve=500, per_second=0)
    withdrawn = []

    def work() -> None:
        for _ in range(500):
            attempt = chosen.pick()
            withdrawn.append(budget.withdraw())
            chosen.settle(attempt, True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(withdrawn) == 500, "tokens were lost or made"
    assert [health.outstanding for health in chosen._healths] == [0, 0, 0]


@pytest.mark.parametrize(
    ("status", "said", "expected", "healthy"),
    [
        ("DEADLINE_EXCEEDED", "", DeadlineExceeded, False),
        ("UNAVAILABLE", "Request timeout expired", ServerOverloaded, None),
        ("503", "Request timeout expired", ServerOverloaded, None),
        ("504", "upstream", DeadlineExceeded, False),
        ("UNAVAILABLE", "failed to connect", ServerUnavailable, False),
        ("502", "bad gateway", ServerUnavailable, False),
        ("UNAVAILABLE", "Exceeds maximum queue size", ServerOverloaded, None),
        ("503", "Exceeds maximum queue size", ServerOverloaded, None),
        ("429", "slow down", ServerOverloaded, None),
        ("NOT_FOUND", "unknown model", ModelNotFound, True),
        ("404", "unknown model", ModelNotFound, True),
        ("NOT_FOUND", "'recommend' has no available versions", ServerUnavailable, False),
        ("404", "'recommend' has no available versions", ServerUnavailable, False),
        ("UNAUTHENTICATED", "no token", Unauthorized, True),
        ("403", "no token", Unauthorized, True),
        ("INVALID_ARGUMENT", "k came as 0", InvalidRequest, True),
        ("400", "k came as 0", InvalidRequest, True),
        ("INTERNAL", "Stub process 'recommend_0_1' is not healthy.", ServerUnavailable, False),
        ("500", "Stub process 'recommend_0_1' is not healthy.", ServerUnavailable, False),
        ("", "", ServerFault, False),
    ],
)
def test_what_a_status_means(status: str, said: str, expected: type[ClientError], healthy: bool | None) -> None:
    error = of_status(status, said, endpoint="grpc://a:1", model="recommend", total_s=0.2)
    assert type(error) is expected
    assert is_healthy(error) is healthy, "what it says about the endpoint"
    assert "grpc://a:1" in str(error) and (expected is DeadlineExceeded or said in str(error))
