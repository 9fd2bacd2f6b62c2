"""The two clients: the same calls, blocking and in asyncio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from fuserec.client._errors import InvalidRequest
from fuserec.client._transport import open_async_transport, open_transport
from fuserec.client._wire import (
    EXPLAIN_OUTPUTS,
    RANK_OUTPUTS,
    RECOMMEND_OUTPUTS,
    Explanation,
    Ranked,
    Recommendations,
    pack,
    pack_explain,
    pack_rank,
    unpack,
    unpack_explain,
    unpack_rank,
)
from fuserec.contract import EXPLAIN, RANK, RECOMMEND

DEFAULT_TIMEOUT_MS = 1_000.0


class Recommender:
    """Recommendations from a fuserec server; threads may share one over gRPC and over HTTP.

    Args:
        endpoint: `host:port` or `grpc://host:port` for gRPC, `http://host:port` for HTTP.
        timeout_ms: Milliseconds that a call may take in all, where it does not say itself.

    Raises:
        InvalidRequest: The endpoint or the timeout cannot be understood.
    """

    def __init__(self, endpoint: str, *, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> None:
        self._timeout_s = _seconds(timeout_ms)
        self._transport = open_transport(endpoint)

    def recommend(
        self,
        *,
        user_id: int | None = None,
        history: Sequence[int] = (),
        k: int = 10,
        exclude: Sequence[int] = (),
        text: str | None = None,
        history_only: bool = False,
        timeout_ms: float | None = None,
    ) -> Recommendations:
        """Return the k best items for a user.

        What the user is known to have consumed, and the items of `history`, are never recommended.

        Args:
            user_id: The id the model was trained with; None for somebody known only by a history.
            history: Item ids the user consumed, oldest first; without it, what the server has stored of the user.
            k: How many items to return, 1 to 10,000.
            exclude: Item ids that must not come back.
            text: What the user is after, in place of who they are, for models that read texts; what they have seen
                stays excluded.
            history_only: `history` is all there is: what the server has stored of the user is neither read nor
                excluded.
            timeout_ms: Milliseconds that this call may take in all.

        Raises:
            InvalidRequest: An argument is wrong.
            DeadlineExceeded: No answer came in time.
            ServerUnavailable: Nobody listens there, or the server sheds load.
            ModelNotFound: The server does not serve a fuserec repository.
            ServerFault: The server failed.
        """
        timeout_s = self._timeout_s if timeout_ms is None else _seconds(timeout_ms)
        tensors = pack(user_id, history, k, exclude, history_only=history_only, text=text)
        return unpack(*self._transport.infer(RECOMMEND, tensors, RECOMMEND_OUTPUTS, timeout_s))

    def rank(
        self,
        *,
        candidates: Sequence[int],
        user_id: int | None = None,
        history: Sequence[int] = (),
        history_only: bool = False,
        timeout_ms: float | None = None,
    ) -> Ranked:
        """Return candidates in the order that the served ranker gives them for a user.

        Args:
            candidates: Item ids, 1 to 1,000.
            user_id: As in `recommend`.
            history: As in `recommend`.
            history_only: As in `recommend`.
            timeout_ms: Milliseconds that this call may take in all.

        Raises:
            ClientError: As in `recommend`; `ModelNotFound` also where no ranker was exported.
        """
        timeout_s = self._timeout_s if timeout_ms is None else _seconds(timeout_ms)
        tensors = pack_rank(user_id, history, candidates, history_only=history_only)
        return unpack_rank(*self._transport.infer(RANK, tensors, RANK_OUTPUTS, timeout_s))

    def explain(
        self,
        *,
        item_id: int,
        user_id: int | None = None,
        history: Sequence[int] = (),
        history_only: bool = False,
        timeout_ms: float | None = None,
    ) -> Explanation:
        """Return which items of a user's history moved the score of an item, and how much (leave-one-out).

        Args:
            item_id: The item that was, or might be, recommended.
            user_id: As in `recommend`.
            history: As in `recommend`.
            history_only: As in `recommend`.
            timeout_ms: Milliseconds that this call may take in all.

        Raises:
            ClientError: As in `recommend`.
        """
        timeout_s = self._timeout_s if timeout_ms is None else _seconds(timeout_ms)
        tensors = pack_explain(user_id, history, item_id, history_only=history_only)
        return unpack_explain(*self._transport.infer(EXPLAIN, tensors, EXPLAIN_OUTPUTS, timeout_s))

    def close(self) -> None:
        """Let go of the connections; calls fail from now on."""
        self._transport.close()

    def __enter__(self) -> Recommender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRecommender:
    """`Recommender` in asyncio; it belongs to the event loop of its first call.

    Args:
        endpoint: `host:port` or `grpc://host:port` for gRPC, `http://host:port` for HTTP.
        timeout_ms: Milliseconds that a call may take in all, where it does not say itself.

    Raises:
        InvalidRequest: The endpoint or the timeout cannot be understood.
    """

    def __init__(self, endpoint: str, *, timeout_ms: float = DEFAULT_TIMEOUT_MS) -> None:
        self._timeout_s = _seconds(timeout_ms)
        self._transport = open_async_transport(endpoint)

    async def recommend(
        self,
        *,
        user_id: int | None = None,
        history: Sequence[int] = (),
        k: int = 10,
        exclude: Sequence[int] = (),
        text: str | None = None,
        history_only: bool = False,
        timeout_ms: float | None = None,
    ) -> Recommendations:
        """Return the k best items for a user; arguments and errors are those of `Recommender.recommend`."""
        timeout_s = self._timeout_s if timeout_ms is None else _seconds(timeout_ms)
        tensors = pack(user_id, history, k, exclude, history_only=history_only, text=text)
        return unpack(*await self._transport.infer(RECOMMEND, tensors, RECOMMEND_OUTPUTS, timeout_s))

    async def rank(
        self,
        *,
        candidates: Sequence[int],
        user_id: int | None = None,
        history: Sequence[int] = (),
        history_only: bool = False,
        timeout_ms: float | None = None,
    ) -> Ranked:
        """Return candidates in the ranker's order; arguments and errors are those of `Recommender.rank`."""
        timeout_s = self._timeout_s if timeout_ms is None else _seconds(timeout_ms)
        tensors = pack_rank(user_id, history, candidates, history_only=history_only)
        return unpack_rank(*await self._transport.infer(RANK, tensors, RANK_OUTPUTS, timeout_s))

    async def explain(
        self,
        *,
        item_id: int,
        user_id: int | None = None,
        history: Sequence[int] = (),
        history_only: bool = False,
        timeout_ms: float | None = None,
    ) -> Explanation:
        """Return what moved the score of an item; arguments and errors are those of `Recommender.explain`."""
        timeout_s = self._timeout_s if timeout_ms is None else _seconds(timeout_ms)
        tensors = pack_explain(user_id, history, item_id, history_only=history_only)
        return unpack_explain(*await self._transport.infer(EXPLAIN, tensors, EXPLAIN_OUTPUTS, timeout_s))

    async def close(self) -> None:
        """Let go of the connections; calls fail from now on."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncRecommender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _seconds(timeout_ms: float) -> float:
    if not math.isfinite(timeout_ms) or timeout_ms <= 0:
        raise InvalidRequest(f"timeout_ms came as {timeout_ms}, expected a positive number of milliseconds")
    return timeout_ms / 1e3
