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


def pack(user_id: int | None, history: Sequence[int], k: int, exclude: Sequence[int]) -> Tensors:
    """Check a call for one user and turn it into the input tensors of `recommend`.

    Raises:
        InvalidRequest: An argument is of the wrong type or outside its limits.
    """
    return {
        contract.USER_ID: np.array([[_user(user_id)]], dtype=np.int64),
        contract.HISTORY: _ids(contract.HISTORY, history, contract.MAX_HISTORY),
        contract.EXCLUDE: _ids(contract.EXCLUDE, exclude, contract.MAX_EXCLUDE),
        contract.K: np.array([[_k(k)]], dtype=np.int32),
    }


def unpack(outputs: Tensors, model_version: str) -> Recommendations:
    """Turn the output tensors of `recommend` for one user into an answer."""
    return Recommendations(
        item_ids=outputs[contract.ITEM_IDS][0],
        scores=outputs[contract.SCORES][0],
        model_version=model_version,
        fallback=bool(outputs[contract.FALLBACK][0, 0]),
        ignored=int(outputs[contract.IGNORED][0, 0]),
    )


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
