"""A clock that only tests move, and a transport that does what it was told to on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fuserec.client._policy import Transport
from fuserec.client._wire import Answer, Message
from fuserec.errors import DeadlineExceeded

ANSWER = Answer({}, "1", "fake://a")


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class FakeFlight:
    """Done at a moment, with an answer or an error."""

    def __init__(self, place: int, done_at: float, outcome: object) -> None:
        self.place, self.done_at, self.outcome = place, done_at, outcome
        self.cancelled = False

    def result(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True


class FakeTransport(Transport):
    """Each attempt takes the next of `script`: (seconds, answer or error); beyond the deadline it is exceeded.

    `of_place`, where it is set, says what every attempt at a place takes.
    """

    of_place: Callable[[int], tuple[float, object]] | None = None

    def __init__(self, clock: FakeClock, *script: tuple[float, object]) -> None:
        self.clock, self.script = clock, list(script)
        self.attempts: list[FakeFlight] = []
        self.given_s: list[float] = []
        self.pauses: list[float] = []

    def launch(self, place: int, message: Message, timeout_s: float) -> FakeFlight:
        seconds, outcome = self.of_place(place) if self.of_place else self.script.pop(0)
        if seconds >= timeout_s:
            seconds, outcome = timeout_s, DeadlineExceeded("too late")
        self.given_s.append(timeout_s)
        self.attempts.append(FakeFlight(place, self.clock.now + seconds, outcome))
        return self.attempts[-1]

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        flight = self.launch(place, message, timeout_s)
        self.clock.now = flight.done_at
        return flight.result()  # type: ignore[no-any-return]

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> Sequence[Any]:
        next_at = min(flight.done_at for flight in flights)
        if timeout_s is not None and next_at > self.clock.now + timeout_s:
            self.clock.now += timeout_s
            return []
        self.clock.now = next_at
        return [flight for flight in flights if flight.done_at <= next_at]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.now += seconds

    @property
    def places(self) -> list[int]:
        """Where the attempts went, in order."""
        return [attempt.place for attempt in self.attempts]
