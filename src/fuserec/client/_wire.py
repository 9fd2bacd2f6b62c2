"""A call as tensors, and tensors as an answer; checks here cost no round trip."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fuserec import contract
from fuserec.errors import InvalidRequest, ServerFault
from fuserec.rules import Rules

Tensors = dict[str, NDArray[Any]]
_NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Message:
    """One request as it is sent, as often as need be.

    Attributes:
        model: The model that is asked.
        tensors: Its inputs by name.
        headers: HTTP headers or gRPC metadata.
        total_s: What the whole call may take, for the texts of errors.
    """

    model: str
    tensors: Tensors
    headers: dict[str, str]
    total_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """All that a model gave back.

    Attributes:
        tensors: Its outputs by name, each with a leading batch axis.
        version: The version of the model.
        endpoint: Who answered.
    """

    tensors: Tensors
    version: str
    endpoint: str

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.tensors:
            fault = ServerFault(f"{self.endpoint} answered without {name!r}; is it a fuserec repository?")
            fault.endpoint = self.endpoint
            raise fault
        return self.tensors[name]


@dataclass(frozen=True, slots=True)
class Query:
    """What to recommend to one user; checked when it is sent.

    Attributes:
        user_id: The id the model was trained with; None for somebody known only by a history.
        history: Item ids the user consumed, oldest first; without it, what the server has stored of the user. They
            are never recommended.
        k: How many items to return, 1 to 10,000.
        exclude: Item ids that must not come back.
        allow: Only these item ids may come back; empty allows all.
        rules: Boosts, caps and diversity of the list.
        text: What the user is after, in place of who they are, for models that read texts; what they have seen
            stays excluded.
        history_only: `history` is all there is: what the server has stored of the user is neither read nor excluded.
    """

    user_id: int | None = None
    history: Sequence[int] = ()
    k: int = 10
    exclude: Sequence[int] = ()
    allow: Sequence[int] = ()
    rules: Rules | None = None
    text: str | None = None
    history_only: bool = False


@dataclass(frozen=True)
class Recommendations:
    """The items recommended to one user; iterating gives (item id, score), best first.

    Attributes:
        item_ids: (k,) int64, best first; where fewer than k items are left the tail is -1.
        scores: (k,) float32, descending; the tail is -inf.
        model_version: The version of the bundle that answered this user; in an A/B split not the same for all.
        fallback: Nothing was known of the user, so these are the most popular items and `scores` their share of
            all interactions.
        ignored: How many ids of `history` and `exclude` the catalogue does not hold.
        source: "server", or "client" for what the client's own `fallback` gave when no server answered.
    """

    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    model_version: str
    fallback: bool
    ignored: int
    source: Literal["server", "client"] = "server"

    @property
    def version(self) -> int | None:
        """`model_version` as a number; None where it is none, as in an answer of the client's own fallback."""
        return int(self.model_version) if self.model_version.isdecimal() else None

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


class Row(NamedTuple):
    """A query that has been checked."""

    user_id: int
    history: NDArray[np.int64]
    k: int
    exclude: NDArray[np.int64]
    allow: NDArray[np.int64]
    rules: bytes
    text: bytes
    history_only: bool


def check(query: Query) -> Row:
    """Check a query.

    Raises:
        InvalidRequest: An argument is of the wrong type or outside its limits.
    """
    if not isinstance(query, Query):
        raise InvalidRequest(f"a query came as {query!r} ({type(query).__name__}), expected fuserec.client.Query")
    return Row(
        _user(query.user_id),
        _ids(contract.HISTORY, query.history, contract.MAX_HISTORY),
        _k(query.k),
        _ids(contract.EXCLUDE, query.exclude, contract.MAX_EXCLUDE),
        _allow(query.allow),
        _rules(query.rules),
        _text(query.text),
        _flag(query.history_only),
    )


def pack(rows: Sequence[Row]) -> Tensors:
    """Turn checked queries into the input tensors of `recommend`.

    What no row asks for is not sent: a server batches requests with the same set of inputs.
    """
    user_ids, histories, ks, excluded, allowed, rules, texts, flags = zip(*rows, strict=True)
    tensors: Tensors = {
        contract.USER_ID: np.array(user_ids, dtype=np.int64)[:, None],
        contract.HISTORY: _padded(histories),
        contract.EXCLUDE: _padded(excluded),
        contract.K: np.array(ks, dtype=np.int32)[:, None],
    }
    if any(flags):
        tensors[contract.HISTORY_ONLY] = np.array(flags)[:, None]
    if any(map(len, allowed)):
        tensors[contract.ALLOW] = _padded(allowed)
    for name, column in ((contract.TEXT, texts), (contract.RULES, rules)):
        if any(column):
            tensors[name] = np.array(column, dtype=np.object_)[:, None]
    return tensors


def pack_rank(
    user_id: int | None, history: Sequence[int], candidates: Sequence[int], *, history_only: bool = False
) -> Tensors:
    """Check a call for one user and turn it into the input tensors of `rank`."""
    ids = _ids(contract.CANDIDATES, candidates, contract.MAX_CANDIDATES)
    if not ids.size:
        raise InvalidRequest("candidates came empty, expected at least one item id")
    return _asker(user_id, history, history_only) | {contract.CANDIDATES: ids[None, :]}


def pack_explain(user_id: int | None, history: Sequence[int], item_id: int, *, history_only: bool = False) -> Tensors:
    """Check a call for one user and turn it into the input tensors of `explain`."""
    item = _ids(contract.ITEM_ID, [_integer("item_id", item_id)], 1)
    return _asker(user_id, history, history_only) | {contract.ITEM_ID: item[None, :]}


def unpack(answer: Answer, rows: Sequence[Row]) -> list[Recommendations]:
    """Turn the answer of `recommend` into one for each of its rows."""
    ids, scores = answer[contract.ITEM_IDS], answer[contract.SCORES]
    fallback, ignored = answer[contract.FALLBACK], answer[contract.IGNORED]
    versions = answer.tensors.get(contract.VERSION)  # absent from servers of before A/B splits
    return [
        Recommendations(
            item_ids=ids[place, : row.k],
            scores=_scores(ids[place, : row.k], scores[place, : row.k]),
            model_version=answer.version if versions is None else str(versions[place, 0]),
            fallback=bool(fallback[place, 0]),
            ignored=int(ignored[place, 0]),
        )
        for place, row in enumerate(rows)
    ]


def unpack_rank(answer: Answer) -> Ranked:
    """Turn the answer of `rank` for one user into what users see."""
    ids = answer[contract.ITEM_IDS][0]
    count = int(np.count_nonzero(ids != contract.NO_ID))
    ratings = answer[contract.RATINGS][0][:count]
    return Ranked(
        item_ids=ids[:count],
        scores=answer[contract.SCORES][0][:count],
        ratings=np.where(ratings == contract.NO_SCORE, np.float32(np.nan), ratings),
        model_version=answer.version,
        ignored=int(answer[contract.IGNORED][0, 0]),
    )


def unpack_explain(answer: Answer) -> Explanation:
    """Turn the answer of `explain` for one user into what users see."""
    ids = answer[contract.ITEM_IDS][0]
    count = int(np.count_nonzero(ids != contract.NO_ID))
    return Explanation(
        item_ids=ids[:count],
        contributions=answer[contract.CONTRIBUTIONS][0][:count],
        score=float(answer[contract.SCORE][0, 0]),
        baseline=float(answer[contract.BASELINE][0, 0]),
        model_version=answer.version,
    )


def _scores(ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a row of scores as users see them: beside ids that are none, minus infinity in place of `NO_SCORE`."""
    is_whole = not ids.size or ids[-1] != contract.NO_ID  # as most are
    return scores if is_whole else np.where(ids == contract.NO_ID, np.float32(-np.inf), scores)


def _asker(user_id: int | None, history: Sequence[int], history_only: bool) -> Tensors:
    """Return the tensors that say who asks; what is off is not sent."""
    tensors: Tensors = {
        contract.USER_ID: np.array([[_user(user_id)]], dtype=np.int64),
        contract.HISTORY: _ids(contract.HISTORY, history, contract.MAX_HISTORY)[None, :],
    }
    if _flag(history_only):
        tensors[contract.HISTORY_ONLY] = np.array([[True]])
    return tensors


def _flag(history_only: bool) -> bool:
    if not isinstance(history_only, bool):
        raise InvalidRequest(f"history_only came as {history_only!r}, expected True or False")
    return history_only


def _allow(ids: Sequence[int]) -> NDArray[np.int64]:
    array = _ids(contract.ALLOW, ids, contract.MAX_ALLOW)
    if array.size and (array == contract.NO_ID).any():
        # A row of nothing else would allow everything.
        raise InvalidRequest(f"allow came with {contract.NO_ID}, which is no item id; leave it out")
    return array


def _rules(rules: Rules | None) -> bytes:
    if rules is None:
        return b""
    if not isinstance(rules, Rules):
        raise InvalidRequest(f"rules came as {rules!r} ({type(rules).__name__}), expected fuserec.client.Rules")
    return rules.to_json().encode()


def _text(text: str | None) -> bytes:
    if text is None:
        return b""
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
    """Return item ids as an (n,) int64 array."""
    if isinstance(ids, tuple) and not ids:  # most of the calls
        return _NO_IDS
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"{name} is not a list of item ids: {error}") from None
    if array.size == 0:
        return _NO_IDS
    if array.ndim != 1 or not np.can_cast(array.dtype, np.int64) or array.dtype == np.bool_:
        raise InvalidRequest(
            f"{name} came with dtype {array.dtype} and shape {array.shape}, expected int64 item ids in one dimension"
        )
    if len(array) > limit:
        raise InvalidRequest(f"{name} came with {len(array)} ids, expected at most {limit}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _padded(rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return rows of unequal length as one (B, longest) tensor, filled up with NO_ID."""
    if len(rows) == 1:
        return rows[0][None, :]
    padded = np.full((len(rows), max(map(len, rows))), contract.NO_ID, dtype=np.int64)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded


def of_ids(ids: Sequence[int], k: int) -> Recommendations:
    """Return item ids, best first, in the form of an answer that no server gave."""
    found = _ids("the fallback", ids, contract.MAX_K)[:k]
    scores = np.full(len(found), np.nan, dtype=np.float32)
    return Recommendations(found, scores, model_version="", fallback=True, ignored=0)
