"""All that a call needs to know and that neither waits nor sends: addresses, health, budgets, what errors mean.

    Endpoint, TLS   where a server listens
    Deadline        how much time a call has left, whatever happens on its way
    RetryBudget     how many attempts beyond the first a client may make
    Balancer        which endpoint the next attempt goes to, and which are left out for a while
    Transport       what is left to others: sending and waiting

Clocks and randomness can be given, so that a test needs neither servers nor patience.
"""

from __future__ import annotations

import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fuserec.client._proxy import is_loopback
from fuserec.client._tensors import readable
from fuserec.client._wire import Answer, Message
from fuserec.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    MalformedAnswer,
    ModelNotFound,
    ServerFault,
    ServerOverloaded,
    ServerUnavailable,
    Unauthorized,
)

T = TypeVar("T")
Task = Callable[[], Coroutine[Any, Any, T]]
Clock = Callable[[], float]

BACKOFF_BASE_S, BACKOFF_LIMIT_S = 0.02, 1.0
FAILURES_TO_EJECT = 3
EJECTION_BASE_S, EJECTION_LIMIT_S = 1.0, 30.0
_URL = re.compile(r"(?:(grpc|http)(s)?://)?([^/:\s@]+|\[[0-9A-Fa-f:.%]+\]):(\d+)/?")


@dataclass(frozen=True)
class TLS:
    """How a connection is secured.

    Attributes:
        ca: PEM file with the certificates that vouch for the server; the usual public ones by default.
        certificate: PEM file with the client's own certificate, where the server asks for one.
        key: PEM file with the key of `certificate`.

    Raises:
        InvalidRequest: A file is missing or damaged, or one of `certificate` and `key` came alone.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("TLS came with one of certificate and key, expected both or neither")
        try:
            self.context()
        except OSError as error:
            raise InvalidRequest(f"{self} cannot be read: {error}; expected PEM files that fit each other") from None

    def context(self) -> ssl.SSLContext:
        """Return what Python's own sockets need."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens: `host:port`, or a URL with grpc, grpcs, http or https; gRPC when no scheme is given."""

    scheme: str
    authority: str
    tls: TLS | None = None

    @classmethod
    def parse(cls, url: str, tls: TLS | bool | None = None) -> Endpoint:
        """Read a URL; `tls` secures it whatever the scheme, and a scheme that ends in s asks for no `tls`."""
        found = _URL.fullmatch(url) if isinstance(url, str) else None
        if found is None or not 0 < int(found[4]) < 65_536:
            raise InvalidRequest(
                f"endpoint came as {url!r}, expected host:port, grpc://host:port or http://host:port; grpcs or https "
                "for TLS"
            )
        if found[2] and tls is False:
            raise InvalidRequest(f"endpoint came as {url!r} with tls=False; give another scheme, or leave tls out")
        secured = tls if isinstance(tls, TLS) else TLS() if tls or found[2] else None
        return cls(found[1] or "grpc", f"{found[3]}:{found[4]}", secured)

    @property
    def host(self) -> str:
        """Its name or address, an IPv6 address without brackets."""
        return self.authority.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.authority.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"{self.scheme}{'s' if self.tls else ''}://{self.authority}"


class Deadline:
    """The moment by which a call has ended: attempts, pauses, hedges and waiting for a connection included."""

    __slots__ = ("_clock", "_end", "total_s")

    def __init__(self, total_s: float, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + total_s
        self.total_s = total_s

    def left_s(self) -> float:
        """Return the seconds left; negative once it has passed."""
        return self._end - self._clock()


class RetryBudget:
    """A bucket of tokens, shared by all calls of a client, so that an outage is not multiplied by retries.

    A call adds a share of a token and an attempt beyond the first takes a whole one: in the long run at most `share`
    of the calls are sent twice. The bucket starts full, for the moment when one of several servers dies with many
    calls in flight, and fills slowly by itself, for clients that seldom call. The idea is Finagle's retry budget
    (Twitter, 2016) and gRPC's retry throttling (gRFC A6).
    """

    def __init__(
        self, *, share: float = 0.2, reserve: float = 100.0, per_second: float = 1.0, clock: Clock = time.monotonic
    ) -> None:
        self._share, self._reserve, self._per_second, self._clock = share, reserve, per_second, clock
        self._tokens, self._filled_at = reserve, clock()
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Count one call."""
        with self._lock:
            self._tokens += self._share  # too much is poured out when it is counted

    def withdraw(self) -> bool:
        """Return whether one more attempt may be made, and count it."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._reserve, self._tokens + (now - self._filled_at) * self._per_second)
            self._filled_at = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


@dataclass(slots=True)
class _Health:
    """What is known of an endpoint."""

    outstanding: int = 0
    failures: int = 0  # in a row
    ejected_at: float | None = None
    ejected_for_s: float = EJECTION_BASE_S
    probed: bool = False

    def is_due(self, now: float) -> bool:
        """Whether it has been left out for long enough, and nobody is trying it yet."""
        return self.ejected_at is not None and not self.probed and now >= self.ejected_at + self.ejected_for_s


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call: the place of its endpoint, and whether it is to find out if that is back."""

    place: int
    probe: bool


class Balancer:
    """Chooses endpoints; threads may share one.

    Among the healthy, the less busy of two drawn at random (Mitzenmacher, 2001, "The power of two choices"). An
    endpoint that fails `FAILURES_TO_EJECT` times in a row is left out for a second, then one call is let through: its
    success brings the endpoint back, its failure doubles the time, up to 30 s. With all of them out, the one out
    longest is tried: a call never fails without having been sent.
    """

    def __init__(self, count: int, *, clock: Clock = time.monotonic, randomness: random.Random | None = None) -> None:
        self._healths = [_Health() for _ in range(count)]
        self._clock = clock
        self._random = randomness or random.Random()
        self._lock = threading.Lock()

    def pick(self, tried: Sequence[int] = ()) -> Attempt:
        """Return where the next attempt goes; to be settled once it has ended.

        Args:
            tried: Places that this call has been to; another one is preferred.
        """
        with self._lock:
            attempt = self._choose(self._clock(), tried)
            health = self._healths[attempt.place]
            health.outstanding += 1
            health.probed |= attempt.probe
            return attempt

    def _choose(self, now: float, tried: Sequence[int]) -> Attempt:
        places = range(len(self._healths))
        fresh = [place for place in places if place not in tried] if tried else places
        for place in fresh:
            if self._healths[place].is_due(now):
                return Attempt(place, probe=True)
        for candidates in (fresh, places):
            healthy = [place for place in candidates if self._healths[place].ejected_at is None]
            if healthy:
                return Attempt(self._less_busy(healthy), probe=False)
        longest = min(fresh or places, key=lambda place: self._healths[place].ejected_at or 0.0)
        return Attempt(longest, probe=False)

    def _less_busy(self, places: list[int]) -> int:
        if len(places) == 1:
            return places[0]
        first, second = self._random.sample(places, 2)
        return second if self._healths[second].outstanding < self._healths[first].outstanding else first

    def settle(self, attempt: Attempt, healthy: bool | None) -> None:
        """Take note of how an attempt ended; None if it says nothing about the endpoint."""
        with self._lock:
            health = self._healths[attempt.place]
            health.outstanding -= 1
            if attempt.probe:
                health.probed = False
            if healthy:
                health.failures, health.ejected_at, health.ejected_for_s = 0, None, EJECTION_BASE_S
            elif healthy is not None:
                self._count_failure(health, attempt.probe)

    def _count_failure(self, health: _Health, probe: bool) -> None:
        health.failures += 1
        if health.ejected_at is None and health.failures < FAILURES_TO_EJECT:
            return
        if probe:
            health.ejected_for_s = min(2 * health.ejected_for_s, EJECTION_LIMIT_S)
        health.ejected_at = self._clock()


def is_healthy(error: ClientError) -> bool | None:
    """Return what an error says about the endpoint that it came from.

    A refusal is an answer like any other. One that is overloaded works as well as it can, and is passed over anyway
    while its calls are outstanding; to eject it would overload the others.
    """
    if isinstance(error, ServerOverloaded):
        return None
    return not isinstance(error, ServerUnavailable | ServerFault | DeadlineExceeded)


def backoff_s(retry: int, randomness: random.Random) -> float:
    """Return the pause before a retry, counted from 0: exponential with full jitter (Brooker, AWS, 2015)."""
    return randomness.uniform(0.0, min(BACKOFF_LIMIT_S, BACKOFF_BASE_S * 2.0 ** min(retry, 30)))


def of_status(status: str, said: str, *, endpoint: str, model: str, total_s: float) -> ClientError:
    """Return the error for a gRPC state, spelled out, or an HTTP status; it says what to do.

    Args:
        status: Such as `NOT_FOUND` or `404`.
        said: The server's own message.
        endpoint: Who answered.
        model: The model that was asked.
        total_s: What the whole call might take.
    """
    # A model has no better state than CANCELLED for a request that it ends, which server 2.51 makes 400 over HTTP.
    is_late = status in ("DEADLINE_EXCEEDED", "CANCELLED", "499", "504") or said.startswith("deadline exceeded: ")
    said = readable(said)
    if is_late:
        return DeadlineExceeded(
            f"{endpoint} did not answer within {total_s * 1e3:.0f} ms; allow more with timeout_ms, or see its load"
        )
    # The server's words for a full queue, and for a request that waited in it for longer than it may.
    shed = "queue size" in said or "timeout expired" in said
    if status == "429" or (status in ("UNAVAILABLE", "503") and shed):
        return ServerOverloaded(f"{endpoint} has more to do than it accepts: {said}; call less often, or add servers")
    # A process of the model has died; the others are well, and the supervisor is about to bring it back.
    died = "Stub process" in said and "not healthy" in said
    # A server that ends takes its models away first; another one may have them.
    ends = "no available versions" in said
    if status in ("UNAVAILABLE", "502", "503") or died or ends:
        return ServerUnavailable(f"{endpoint} is not available: {said}; is `fuserec serve` running there?")
    if status in ("NOT_FOUND", "404"):
        return ModelNotFound(f"{endpoint} has no model {model!r}: {said}; is it a fuserec repository?")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403"):
        return Unauthorized(f"{endpoint} does not let this client in: {said}; see token and tls")
    if status in ("INVALID_ARGUMENT", "400", "413"):
        return InvalidRequest(f"{endpoint} refused the call to {model!r}: {said}")
    # The words of the gRPC library, which has looked at the length of the answer before it was taken apart.
    if status == "UNIMPLEMENTED" or (status == "RESOURCE_EXHAUSTED" and said.startswith("CLIENT: Received")):
        return MalformedAnswer(f"{endpoint} gave no answer that can be used: {said}; is it a fuserec server?")
    return ServerFault(f"{endpoint} failed in {model!r} ({status or 'no status'}): {said}; see the server's log")


class Flight(Protocol):
    """An attempt on its way."""

    def result(self) -> Answer:
        """Return the answer of a flight that is done, or raise its `ClientError`."""
        ...

    def cancel(self) -> object:
        """Give it up; the server is told where the protocol can."""
        ...


class Transport:
    """Sends attempts and waits; a place is that of an endpoint in the list it was made with."""

    async def send(self, place: int, message: Message, timeout_s: float) -> Answer:
        """Return the answer to one attempt."""
        raise NotImplementedError

    def launch(self, place: int, message: Message, timeout_s: float) -> Flight:
        """Send, and return at once."""
        raise NotImplementedError

    async def first(self, flights: Sequence[Any], timeout_s: float | None) -> Sequence[Flight]:
        """Wait for the first of the flights, and return those that are done; none after the time given."""
        raise NotImplementedError

    async def pause(self, seconds: float) -> None:
        """Wait."""
        raise NotImplementedError

    async def gather(self, tasks: Sequence[Task[T]]) -> list[T]:
        """Run tasks, a few at once; return their results in order, or raise the first failure."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connections; calls fail from now on. Nothing happens the second time."""
        raise NotImplementedError

    def check_usable(self) -> None:
        """Raise `InvalidRequest` where no call may be made: after `close`, in a fork, in another event loop."""
        raise NotImplementedError


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over a blocking transport, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError("a blocking transport waited on an event loop")
