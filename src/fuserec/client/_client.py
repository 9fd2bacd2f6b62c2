"""One call, and what both clients are made of; written once, as coroutines that a blocking transport never suspends."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, TypeVar

from fuserec.client._policy import (
    TLS,
    Attempt,
    Balancer,
    Clock,
    Deadline,
    Endpoint,
    Flight,
    RetryBudget,
    Transport,
    backoff_s,
    is_healthy,
)
from fuserec.client._transport import open_transport
from fuserec.client._wire import (
    Answer,
    Message,
    Query,
    Recommendations,
    Row,
    Tensors,
    most_bytes,
    of_ids,
    pack,
    unpack,
)
from fuserec.contract import RECOMMEND
from fuserec.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    MalformedAnswer,
    ServerFault,
    ServerUnavailable,
)

Fallback = Callable[[ClientError, Query], Recommendations | Sequence[int] | None]

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT_MS: Final = 1_000.0
# W3C Trace Context, version 00: neither of the ids is all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Caller:
    """Makes calls; each attempt is a read, so that repeating one is safe whatever became of it.

    Args:
        transport: What sends and waits.
        endpoints: How many endpoints it has.
        retries: Attempts after the first, on `ServerUnavailable` and `MalformedAnswer` only.
        hedge_after_s: After this time without an answer a second attempt is made beside the first; None for never.
        clock: Seconds that only grow.
        randomness: For the choice of endpoints and the length of pauses.
    """

    def __init__(
        self,
        transport: Transport,
        endpoints: int,
        *,
        retries: int,
        hedge_after_s: float | None,
        clock: Clock = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        self._transport = transport
        self._retries, self._hedge_after_s, self._clock = retries, hedge_after_s, clock
        self._random = randomness or random.Random()
        self.balancer = Balancer(endpoints, clock=clock, randomness=self._random)
        self.budget = RetryBudget(clock=clock)

    async def call(self, message: Message, deadline: Deadline, read: Callable[[Answer], T]) -> T:
        """Return the answer to a message.

        Args:
            message: What is asked.
            deadline: When it has ended.
            read: What makes a result of an answer. One that it refuses (`MalformedAnswer`) counts against the endpoint
                that gave it, and another one is asked.

        Raises:
            ClientError: The last attempt's.
        """
        if deadline.left_s() <= 0:
            raise DeadlineExceeded(f"the {deadline.total_s * 1e3:.0f} ms of the call had passed before it was sent")
        self.budget.deposit()
        tried: list[int] = []
        retry = 0
        while True:
            try:
                return await self._attempt(message, deadline, read, tried)
            except (ServerUnavailable, MalformedAnswer) as error:
                error.attempts = len(tried)
                pause_s = backoff_s(retry, self._random)
                if retry >= self._retries or pause_s >= deadline.left_s() or not self.budget.withdraw():
                    raise
                await self._transport.pause(pause_s)
                if deadline.left_s() <= 0:  # the pause took longer than it was to
                    raise
            except ClientError as error:
                error.attempts = len(tried)
                raise
            retry += 1

    async def _attempt(self, message: Message, deadline: Deadline, read: Callable[[Answer], T], tried: list[int]) -> T:
        attempt = self.balancer.pick(tried)
        tried.append(attempt.place)
        # An attempt for which the deadline comes first needs no hedge, and a plain call is the faster one.
        if self._hedge_after_s is not None and self._hedge_after_s < deadline.left_s():
            return await self._hedged(message, deadline, read, tried, attempt)
        healthy: bool | None = None  # stays so when the caller is interrupted
        try:
            answer = read(await self._transport.send(attempt.place, message, deadline.left_s()))
            healthy = True
            return answer
        except ClientError as error:
            healthy = is_healthy(error)
            raise
        finally:
            self.balancer.settle(attempt, healthy)

    async def _hedged(
        self,
        message: Message,
        deadline: Deadline,
        read: Callable[[Answer], T],
        tried: list[int],
        attempt: Attempt,
    ) -> T:
        """Send a second attempt if the first one takes long (Dean and Barroso, 2013); the first answer wins."""
        flights: dict[Flight, Attempt] = {}
        wait_s = self._hedge_after_s
        outpaced: bool | None = None
        failure: ClientError | None = None
        try:
            flights[self._launch(message, deadline, attempt)] = attempt
            while flights:
                done = await self._transport.first(list(flights), wait_s)
                if not done:
                    wait_s = None  # from now on the flights end by themselves, at the deadline at the latest
                    if self.budget.withdraw():
                        hedge = self.balancer.pick(tried)
                        tried.append(hedge.place)
                        flights[self._launch(message, deadline, hedge)] = hedge
                for flight in done:
                    settled, healthy = flights.pop(flight), None
                    try:
                        answer = read(flight.result())
                        healthy = True
                        # Who is overtaken by an attempt sent so much later is slow enough to count as failing.
                        outpaced = False if settled is not attempt else None
                        return answer
                    except ClientError as error:
                        healthy = is_healthy(error)
                        if healthy:
                            raise  # the call was refused, and would be by the other one
                        failure = error
                    finally:
                        self.balancer.settle(settled, healthy)
            assert failure is not None
            raise failure
        finally:
            for flight, loser in flights.items():
                flight.cancel()
                self.balancer.settle(loser, outpaced if loser is attempt else None)

    def _launch(self, message: Message, deadline: Deadline, attempt: Attempt) -> Flight:
        try:
            return self._transport.launch(attempt.place, message, deadline.left_s())
        except BaseException:
            self.balancer.settle(attempt, None)
            raise


class BaseClient:
    """What both clients are made of."""

    _is_blocking: ClassVar[bool]

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        timeout_ms: float = DEFAULT_TIMEOUT_MS,
        retries: int = 2,
        hedge_after_ms: float | None = None,
        tls: TLS | bool | None = None,
        token: str | Callable[[], str] | None = None,
        trace_context: Callable[[], str | None] | None = None,
        fallback: Fallback | None = None,
    ) -> None:
        """Connect to nothing yet: the first call does.

        Args:
            endpoints: One server or several that serve the same repository: `host:port` or `grpc://host:port` for
                gRPC, `http://host:port` for HTTP, `grpcs://` and `https://` for the same over TLS.
            timeout_ms: Milliseconds that a call may take in all, where it does not say itself: retries, hedges and
                the wait for a connection included. The server is told what is left, and drops what would be late.
            retries: Attempts after the first, each at another endpoint if there is one, and only when nobody served
                the call (`ServerUnavailable`, `MalformedAnswer`). All calls of a client share a budget, so that an
                outage is not multiplied: in the long run at most one call in five is sent twice.
            hedge_after_ms: Send a second attempt to another endpoint when this time has passed without an answer, and
                take the answer that comes first; the p95 of the latency is a good choice. Paid from the same budget.
            tls: True, or which certificates to use; `grpcs://` and `https://` with public certificates need none.
            token: Sent as `authorization: Bearer ...`, or what returns it, for tokens that expire.
            trace_context: Returns the `traceparent` (W3C Trace Context) of the caller's span or None, once a call.
            fallback: Asked with the error and the query where `recommend` or `recommend_many` would raise
                `DeadlineExceeded`, `ServerUnavailable` or `ServerFault`; returns `Recommendations` or item ids, best
                first, which become the answer with `source="client"`, or None to have the error raised. It must not
                block.

        Raises:
            InvalidRequest: An argument cannot be understood.
        """
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise InvalidRequest(f"retries came as {retries!r}, expected a whole number, 0 or more")
        self._timeout_s = _seconds("timeout_ms", timeout_ms)
        hedge_after_s = None if hedge_after_ms is None else _seconds("hedge_after_ms", hedge_after_ms)
        self._token, self._trace_context, self._fallback = token, trace_context, fallback
        parsed = _endpoints(endpoints, tls)
        if token is not None and not all(endpoint.tls or endpoint.is_loopback for endpoint in parsed):
            logger.warning("the token travels readable to anybody on the way to %s; see tls", parsed[0])
        self._transport = open_transport(parsed, blocking=self._is_blocking)
        self._caller = Caller(self._transport, len(parsed), retries=retries, hedge_after_s=hedge_after_s)

    def _begin(self, timeout_ms: float | None, traceparent: str | None) -> tuple[Deadline, dict[str, str]]:
        """Return the deadline and the headers of a call that begins now."""
        self._transport.check_usable()
        deadline = Deadline(self._timeout_s if timeout_ms is None else _seconds("timeout_ms", timeout_ms))
        headers = {}
        if self._token is not None:
            headers["authorization"] = f"Bearer {_token(self._token)}"
        if traceparent is None and self._trace_context is not None:
            traceparent = self._trace_context()
        if traceparent is not None:
            if not isinstance(traceparent, str) or not _TRACEPARENT.fullmatch(traceparent):
                raise InvalidRequest(
                    f"traceparent came as {traceparent!r}, expected W3C's 00-<32 hex>-<16 hex>-<2 hex>"
                )
            headers["traceparent"] = traceparent
        return deadline, headers

    async def _call(
        self,
        model: str,
        tensors: Tensors,
        numbers: int,
        read: Callable[[Answer], T],
        deadline: Deadline,
        headers: dict[str, str],
    ) -> T:
        """Ask a model for an answer of at most so many numbers, and return what `read` makes of it."""
        message = Message(model, tensors, headers, deadline.total_s, most_bytes(numbers))
        return await self._caller.call(message, deadline, read)

    async def _ask(
        self, queries: Sequence[Query], rows: Sequence[Row], deadline: Deadline, headers: dict[str, str]
    ) -> list[Recommendations]:
        """Answer queries with one request."""
        try:
            numbers = len(rows) * (3 + 2 * max(row.k for row in rows))
            return await self._call(
                RECOMMEND, pack(rows), numbers, lambda answer: unpack(answer, rows), deadline, headers
            )
        except (DeadlineExceeded, ServerUnavailable, ServerFault) as error:
            answers = []
            for query, row in zip(queries, rows, strict=True):
                given = self._fallback(error, query) if self._fallback else None
                if given is None:
                    raise
                answer = given if isinstance(given, Recommendations) else of_ids(given, row.k)
                answers.append(dataclasses.replace(answer, source="client"))
            return answers


def _endpoints(given: str | Sequence[str], tls: TLS | bool | None) -> list[Endpoint]:
    parsed = [Endpoint.parse(url, tls) for url in ([given] if isinstance(given, str) else given)]
    if not parsed:
        raise InvalidRequest("endpoints came empty, expected at least one")
    if len({endpoint.scheme for endpoint in parsed}) > 1 or len(set(parsed)) < len(parsed):
        listed = ", ".join(map(str, parsed))
        raise InvalidRequest(f"endpoints came as {listed}; expected different servers, all gRPC or all HTTP")
    return parsed


def _token(given: str | Callable[[], str]) -> str:
    token = given if isinstance(given, str) else given()
    # The token stays out of the message.
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]+", token):
        raise InvalidRequest("the token is empty or has characters that no header can carry, expected visible ASCII")
    return token


def _seconds(name: str, milliseconds: float) -> float:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        raise InvalidRequest(f"{name} came as {milliseconds!r}, expected a positive number of milliseconds")
    if not math.isfinite(milliseconds) or milliseconds <= 0:
        raise InvalidRequest(f"{name} came as {milliseconds}, expected a positive number of milliseconds")
    return milliseconds / 1e3
