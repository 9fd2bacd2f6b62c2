"""A call as tensors, and tensors as an answer; checks here cost no round trip."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fuserec import contract
from fuserec.client._errors import InvalidRequest

Tensors = dict[str, NDArray[Any]]

RECOMMEND_OUTPUTS = (contract.ITEM_IDS, contract.SCORES, contract.FALLBACK, contract.IGNORED)
RANK_OUTPUTS = (contract.ITEM_IDS, contract.SCORES, contract.RATINGS, contract.IGNORED)
EXPLAIN_OUTPUTS = (contract.ITEM_IDS, contract.CONTRIBUTIONS, contract.SCORE, contract.BASELINE)


@dataclass(frozen=True)
class Recommendations:
    """The items recommended to one user; iterating gives (item id, score), best first.

    Attributes:
        item_ids: (k,) int64, best first; where fewer than k items are left the tail is -1.
        scores: (k,) float32, descending; the tail is -inf.
        model_version: The version of the bundle that answered.
        fallback: Nothing was known of the user, so these are the most popular items and `scores` their share of
            all interactions.
        ignored: How many ids of `history` and `exclude` the catalogue does not hold.
    """

    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    model_version: str
    fallback: bool
    ignored: int

    def __len__(self) -> int:
        return int(np.count_nonzero(self.item_ids != contract.NO_ID))

    def __iter__(self) -> Iterator[tuple[int, float]]:
        count = len(self)
        return zip(self.item_ids[:count].tolist(), self.scores[:count].tolist(), strict=True)


@dataclass(frozen=True)
class Ranked:
    """Candidates, best first; iterating gives (item id, score).

    Attributes:
        item_ids: (C,) int64, best first, without candidates that the catalogue does not hold.
        scores: (C,) float32, descending: probability of a click, or the rating where the ranker knows no clicks.
        ratings: (C,) float32, predicted ratings; NaN where the ranker knows none.
        model_version: The version of the bundle that answered.
        ignored: How many ids of `history` and `candidates` the catalogue does not hold.
    """

    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    ratings: NDArray[np.float32]
    model_version: str
    ignored: int

    def __len__(self) -> int:
        return len(self.item_ids)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.item_ids.tolist(), self.scores.tolist(), strict=True)


@dataclass(frozen=True)
class Explanation:
    """How the items of a history moved the score of an item; iterating gives (item id, contribution), oldest first.

    Attributes:
        item_ids: (L,) int64, the history that the model read, oldest first.
        contributions: (L,) float32: the score less the score without this item.
        score: Of the item for this user, by the retriever.
        baseline: Its score for the same user without a history.
        model_version: The version of the bundle that answered.
    """

    item_ids: NDArray[np.int64]
    contributions: NDArray[np.float32]
    score: float
    baseline: float
    model_version: str

    def __len__(self) -> int:
        return len(self.item_ids)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.item_ids.tolist(), self.contributions.tolist(), strict=True)


def pack(
    user_id: int | None,
    history: Sequence[int],
    k: int,
    exclude: Sequence[int],
    *,
    history_only: bool = False,
    text: str | None = None,
) -> Tensors:
    """Check a call for one user and turn it into the input tensors of `recommend`.

    Raises:
        InvalidRequest: An argument is of the wrong type or outside its limits.
    """
    tensors = _asker(user_id, history, history_only) | {
        contract.EXCLUDE: _ids(contract.EXCLUDE, exclude, contract.MAX_EXCLUDE),
        contract.K: np.array([[_k(k)]], dtype=np.int32),
    }
    if text is not None:
        tensors[contract.TEXT] = np.array([[_text(text)]], dtype=np.object_)
    return tensors


def pack_rank(
    user_id: int | None, history: Sequence[int], candidates: Sequence[int], *, history_only: bool = False
) -> Tensors:
    """Check a call for one user and turn it into the input tensors of `rank`."""
    ids = _ids(contract.CANDIDATES, candidates, contract.MAX_CANDIDATES)
    if not ids.size:
        raise InvalidRequest("candidates came empty, expected at least one item id")
    return _asker(user_id, history, history_only) | {contract.CANDIDATES: ids}


def pack_explain(user_id: int | None, history: Sequence[int], item_id: int, *, history_only: bool = False) -> Tensors:
    """Check a call for one user and turn it into the input tensors of `explain`."""
    item = _ids(contract.ITEM_ID, [_integer("item_id", item_id)], 1)
    return _asker(user_id, history, history_only) | {contract.ITEM_ID: item}


def unpack_rank(outputs: Tensors, model_version: str) -> Ranked:
    """Turn the output tensors of `rank` for one user into an answer."""
    ids = outputs[contract.ITEM_IDS][0]
    count = int(np.count_nonzero(ids != contract.NO_ID))
    return Ranked(
        item_ids=ids[:count],
        scores=outputs[contract.SCORES][0][:count],
        ratings=outputs[contract.RATINGS][0][:count],
        model_version=model_version,
        ignored=int(outputs[contract.IGNORED][0, 0]),
    )


def unpack_explain(outputs: Tensors, model_version: str) -> Explanation:
    """Turn the output tensors of `explain` for one user into an answer."""
    ids = outputs[contract.ITEM_IDS][0]
    count = int(np.count_nonzero(ids != contract.NO_ID))
    return Explanation(
        item_ids=ids[:count],
        contributions=outputs[contract.CONTRIBUTIONS][0][:count],
        score=float(outputs[contract.SCORE][0, 0]),
        baseline=float(outputs[contract.BASELINE][0, 0]),
        model_version=model_version,
    )


def unpack(outputs: Tensors, model_version: str) -> Recommendations:
    """Turn the output tensors of `recommend` for one user into an answer."""
    return Recommendations(
        item_ids=outputs[contract.ITEM_IDS][0],
        scores=outputs[contract.SCORES][0],
        model_version=model_version,
        fallback=bool(outputs[contract.FALLBACK][0, 0]),
        ignored=int(outputs[contract.IGNORED][0, 0]),
    )


def _asker(user_id: int | None, history: Sequence[int], history_only: bool) -> Tensors:
    """Return the tensors that say who asks; what is off is not sent."""
    if not isinstance(history_only, bool):
        raise InvalidRequest(f"history_only came as {history_only!r}, expected True or False")
    tensors: Tensors = {
        contract.USER_ID: np.array([[_user(user_id)]], dtype=np.int64),
        contract.HISTORY: _ids(contract.HISTORY, history, contract.MAX_HISTORY),
    }
    if history_only:
        tensors[contract.HISTORY_ONLY] = np.array([[True]])
    return tensors


def _text(text: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(f"text came as {text!r} ({type(text).__name__}), expected a string")
    if not text.strip():
        raise InvalidRequest("text came empty, expected what the user is after")
    if len(text) > contract.MAX_TEXT:
        raise InvalidRequest(f"text came with {len(text)} characters, expected at most {contract.MAX_TEXT}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"text cannot be sent as UTF-8: {error.reason}") from None


def _user(user_id: int | None) -> int:
    if user_id is None:
        return contract.NO_ID
    value = _integer("user_id", user_id)
    if not 0 <= value < 2**63:
        raise InvalidRequest(f"user_id came as {value}, expected 0 to 2^63 - 1, or None for an unknown user")
    return value


def _k(k: int) -> int:
    value = _integer("k", k)
    if not 1 <= value <= contract.MAX_K:
        raise InvalidRequest(f"k came as {value}, expected 1 to {contract.MAX_K}")
    return value


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # anything may come; the except clause says so
    except TypeError:
        raise InvalidRequest(f"{name} came as {value!r} ({type(value).__name__}), expected an integer") from None


def _ids(name: str, ids: ArrayLike, limit: int) -> NDArray[np.int64]:
    """Return item ids as a (1, n) int64 tensor."""
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} is not a list of item ids: {error}") from None
    if array.size == 0:
        return np.empty((1, 0), dtype=np.int64)
    if array.ndim != 1 or not np.can_cast(array.dtype, np.int64) or array.dtype == np.bool_:
        raise InvalidRequest(
            f"{name} came with dtype {array.dtype} and shape {array.shape}, expected int64 item ids in one dimension"
        )
    if len(array) > limit:
        raise InvalidRequest(f"{name} came with {len(array)} ids, expected at most {limit}")
    return np.ascontiguousarray(array, dtype=np.int64)[None, :]
