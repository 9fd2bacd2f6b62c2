"""The client library: numpy and tritonclient, nothing heavier.

    from fuserec.client import Recommender

    with Recommender(["shop-1:8001", "shop-2:8001"], timeout_ms=100) as recommender:
        answer = recommender.recommend(user_id=42, history=[50, 181], k=10)
        for item_id, score in answer:
            ...

`AsyncRecommender` has the same calls as coroutines; each is written once, below, and for `Recommender` run over a
transport that blocks. The tree of errors is drawn in `fuserec.errors`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from fuserec.client._client import BaseClient
from fuserec.client._policy import TLS, Endpoint, run_blocking
from fuserec.client._proxy import is_direct, is_loopback, is_this_machine
from fuserec.client._wire import (
    Explanation,
    Query,
    Ranked,
    Recommendations,
    check,
    pack_explain,
    pack_rank,
    unpack_explain,
    unpack_rank,
)
from fuserec.contract import CANDIDATES, EXPLAIN, HISTORY, MAX_BATCH, MAX_HISTORY, RANK
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
from fuserec.rules import Rules

__all__ = [
    "TLS",
    "AsyncRecommender",
    "ClientError",
    "DeadlineExceeded",
    "Endpoint",
    "Explanation",
    "InvalidRequest",
    "MalformedAnswer",
    "ModelNotFound",
    "Query",
    "Ranked",
    "Recommendations",
    "Recommender",
    "Rules",
    "ServerFault",
    "ServerOverloaded",
    "ServerUnavailable",
    "Unauthorized",
    "is_direct",
    "is_loopback",
    "is_this_machine",
]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncRecommender(BaseClient):
    """`Recommender` in asyncio, with coroutines; it belongs to the event loop of its first call."""

    _is_blocking = False

    # `self` is any client, because `Recommender` has the same calls.
    async def recommend(
        self: BaseClient,
        *,
        user_id: int | None = None,
        history: Sequence[int] = (),
        k: int = 10,
        exclude: Sequence[int] = (),
        allow: Sequence[int] = (),
        rules: Rules | None = None,
        text: str | None = None,
        history_only: bool = False,
        timeout_ms: float | None = None,
        traceparent: str | None = None,
    ) -> Recommendations:
        """Return the k best items for a user.

        What the user is known to have consumed, and the items of `history`, are never recommended.

        Args:
            user_id: The id the model was trained with; None for somebody known only by a history.
            history: Item ids the user consumed, oldest first; without it, what the server has stored of the user.
            k: How many items to return, 1 to 10,000.
            exclude: Item ids that must not come back.
            allow: Only these item ids may come back; empty allows all.
            rules: Boosts, caps and diversity of the list.
            text: What the user is after, in place of who they are, for models that read texts; what they have seen
                stays excluded.
            history_only: `history` is all there is: what the server has stored of the user is neither read nor
                excluded.
            timeout_ms: Milliseconds that this call may take in all.
            traceparent: The caller's span (W3C Trace Context), in place of what `trace_context` returns.

        Raises:
            InvalidRequest: An argument is wrong.
            DeadlineExceeded: No answer came in time.
            ServerUnavailable: Nobody listens there, or the server sheds load (`ServerOverloaded`).
            ModelNotFound: The server does not serve a fuserec repository.
            Unauthorized: The server does not accept the token or the certificate.
            ServerFault: The server failed, or what it said is no answer (`MalformedAnswer`).
        """
        query = Query(user_id, history, k, exclude, allow, rules, text, history_only)
        deadline, headers = self._begin(timeout_ms, traceparent)
        (answer,) = await self._ask([query], [check(query)], deadline, headers)
        return answer

    async def recommend_many(
        self: BaseClient,
        queries: Sequence[Query],
        *,
        timeout_ms: float | None = None,
        traceparent: str | None = None,
    ) -> list[Recommendations]:
        """Answer many queries, in their order; 64 travel in a request, and a few requests at once.

        Args:
            queries: What to recommend to whom.
            timeout_ms: Milliseconds that all of it may take.
            traceparent: As in `recommend`.

        Raises:
            InvalidRequest: A query is wrong; its place is named, and nothing was sent.
            ClientError: As in `recommend`; no answer is given if one request fails.
        """
        deadline, headers = self._begin(timeout_ms, traceparent)
        rows = []
        for place, query in enumerate(queries):
            try:
                rows.append(check(query))
            except InvalidRequest as error:
                raise InvalidRequest(f"query {place}: {error}") from None
        parts = [slice(first, first + MAX_BATCH) for first in range(0, len(rows), MAX_BATCH)]
        tasks = [functools.partial(self._ask, queries[part], rows[part], deadline, headers) for part in parts]
        return [answer for answers in await self._transport.gather(tasks) for answer in answers]

    async def rank(
        self: BaseClient,
        *,
        candidates: Sequence[int],
        user_id: int | None = None,
        history: Sequence[int] = (),
        history_only: bool = False,
        timeout_ms: float | None = None,
        traceparent: str | None = None,
    ) -> Ranked:
        """Return candidates in the order that the served ranker gives them for a user.

        Args:
            candidates: Item ids, 1 to 1,000.
            user_id: As in `recommend`.
            history: As in `recommend`.
            history_only: As in `recommend`.
            timeout_ms: Milliseconds that this call may take in all.
            traceparent: As in `recommend`.

        Raises:
            ClientError: As in `recommend`; `ModelNotFound` also where no ranker was exported.
        """
        deadline, headers = self._begin(timeout_ms, traceparent)
        tensors = pack_rank(user_id, history, candidates, history_only=history_only)
        ids = tensors[CANDIDATES][0]
        return await self._call(
            RANK, tensors, 1 + 3 * len(ids), lambda answer: unpack_rank(answer, ids), deadline, headers
        )

    async def explain(
        self: BaseClient,
        *,
        item_id: int,
        user_id: int | None = None,
        history: Sequence[int] = (),
        history_only: bool = False,
        timeout_ms: float | None = None,
        traceparent: str | None = None,
    ) -> Explanation:
        """Return which items of a user's history moved the score of an item, and how much (leave-one-out).

        Args:
            item_id: The item that was, or might be, recommended.
            user_id: As in `recommend`.
            history: As in `recommend`.
            history_only: As in `recommend`.
            timeout_ms: Milliseconds that this call may take in all.
            traceparent: As in `recommend`.

        Raises:
            ClientError: As in `recommend`.
        """
        deadline, headers = self._begin(timeout_ms, traceparent)
        tensors = pack_explain(user_id, history, item_id, history_only=history_only)
        given = tensors[HISTORY][0]
        read = functools.partial(unpack_explain, history=given)
        return await self._call(EXPLAIN, tensors, 2 + 2 * MAX_HISTORY, read, deadline, headers)

    async def close(self: BaseClient) -> None:
        """Let go of the connections; calls fail from now on. Nothing happens the second time."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _blocking(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_blocking(method(*args, **kwargs))

    return call


class Recommender(BaseClient):
    """Recommendations from fuserec servers; threads may share one.

    Every call is a read, so that sending it again, here or at another endpoint, is safe. A process that forks makes
    its own client in each child, or makes no call before it forks.
    """

    recommend = _blocking(AsyncRecommender.recommend)
    recommend_many = _blocking(AsyncRecommender.recommend_many)
    rank = _blocking(AsyncRecommender.rank)
    explain = _blocking(AsyncRecommender.explain)
    close = _blocking(AsyncRecommender.close)
    _is_blocking = True

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
