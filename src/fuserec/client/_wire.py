"""A call as tensors, and tensors as an answer; checks here cost no round trip."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fuserec import contract
from fuserec.errors import InvalidRequest, MalformedAnswer
from fuserec.rules import Rules

Tensors = dict[str, NDArray[Any]]
# What an answer may have in bytes: so much for each number of it, as JSON writes one, beside names and shapes.
_BYTES_A_NUMBER, _BYTES_BESIDE = 48, 64 * 1024
MOST_ANSWER_BYTES = _BYTES_BESIDE + _BYTES_A_NUMBER * 2 * contract.MAX_BATCH * contract.MAX_K
_LONGEST_VERSION = 64
_NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Message:
    """One request as it is sent, as often as need be.

    Attributes:
        model: The model that is asked.
        tensors: Its inputs by name.
        headers: HTTP headers or gRPC metadata.
        total_s: What the whole call may take, for the texts of errors.
        most_bytes: What its answer may have, before it is decompressed or parsed and after.
    """

    model: str
    tensors: Tensors
    headers: dict[str, str]
    total_s: float
    most_bytes: int = MOST_ANSWER_BYTES


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

    def table(self, name: str, dtype: type[np.generic], rows: int) -> NDArray[Any]:
        """Return an output of two dimensions with as many rows as were asked for.

        Raises:
            MalformedAnswer: It did not come, or came as something else.
        """
        array = self.tensors.get(name)
        if array is None:
            raise self.malformed(f"without {name!r}; is it a fuserec repository?")
        if array.dtype != dtype or array.ndim != 2 or len(array) != rows:
            expected = f"{np.dtype(dtype)} of shape ({rows}, ...)"
            raise self.malformed(f"with {name!r} as {array.dtype} of shape {array.shape}, expected {expected}")
        return array

    def column(self, name: str, dtype: type[np.generic], rows: int) -> list[Any]:
        """Return an output of one value a row, as `table` does."""
        array = self.table(name, dtype, rows)
        if array.shape[1] != 1:
            raise self.malformed(f"with {name!r} of shape {array.shape}, expected ({rows}, 1)")
        values: list[Any] = array[:, 0].tolist()
        return values

    def model_version(self) -> str:
        """Return the version of the model, a short word.

        Raises:
            MalformedAnswer: It is none.
        """
        if len(self.version) > _LONGEST_VERSION or not (self.version + "0").isprintable():
            raise self.malformed(f"with the model version {self.version[:_LONGEST_VERSION]!r}")
        return self.version

    def malformed(self, how: str) -> MalformedAnswer:
        """Return the error of an answer that came `how`."""
        error = MalformedAnswer(f"{self.endpoint} answered {how}")
        error.endpoint = self.endpoint
        return error


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


def most_bytes(numbers: int) -> int:
    """Return how many bytes an answer of so many numbers may have."""
    return _BYTES_BESIDE + _BYTES_A_NUMBER * numbers


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
    """Turn the answer of `recommend` into one for each of its rows.

    Raises:
        MalformedAnswer: It is none: of other types or sizes, or with items that were excluded, are there twice, or
            have no score.
    """
    count = len(rows)
    ids, scores = answer.table(contract.ITEM_IDS, np.int64, count), answer.table(contract.SCORES, np.float32, count)
    fallback = answer.column(contract.FALLBACK, np.bool_, count)
    ignored = answer.column(contract.IGNORED, np.int32, count)
    # Absent from servers of before A/B splits.
    split = contract.VERSION in answer.tensors
    versions = answer.column(contract.VERSION, np.int64, count) if split else [answer.model_version()] * count
    width = max(row.k for row in rows)
    if ids.shape[1] != width or scores.shape[1] != width:
        raise answer.malformed(f"with {ids.shape[1]} items and {scores.shape[1]} scores a row, expected {width}")
    return [
        Recommendations(
            *_best(answer, ids[place, : row.k], scores[place, : row.k], row),
            model_version=str(versions[place]),
            fallback=fallback[place],
            ignored=ignored[place],
        )
        for place, row in enumerate(rows)
    ]


def unpack_rank(answer: Answer, candidates: NDArray[np.int64]) -> Ranked:
    """Turn the answer of `rank` for one user into what users see.

    Raises:
        MalformedAnswer: It is none, or ranks something else than the candidates.
    """
    ids, count = _ids_before_tail(answer)
    scores, ratings = (answer.table(name, np.float32, 1)[0][:count] for name in (contract.SCORES, contract.RATINGS))
    if len(scores) != count or len(ratings) != count or not (np.isfinite(scores) & np.isfinite(ratings)).all():
        raise answer.malformed(f"with scores or ratings that are not {count} numbers")
    if Counter(ids.tolist()) - Counter(candidates.tolist()):
        raise answer.malformed("with items that are no candidates, or are there too often")
    return Ranked(
        item_ids=ids,
        scores=scores,
        ratings=np.where(ratings == contract.NO_SCORE, np.float32(np.nan), ratings),
        model_version=answer.model_version(),
        ignored=answer.column(contract.IGNORED, np.int32, 1)[0],
    )


def unpack_explain(answer: Answer, history: NDArray[np.int64]) -> Explanation:
    """Turn the answer of `explain` for one user into what users see; `history` is what was sent, and may be empty.

    Raises:
        MalformedAnswer: It is none, or explains by items that are not in the history.
    """
    ids, count = _ids_before_tail(answer)
    contributions = answer.table(contract.CONTRIBUTIONS, np.float32, 1)[0][:count]
    (score,), (baseline,) = (answer.column(name, np.float32, 1) for name in (contract.SCORE, contract.BASELINE))
    if len(contributions) != count or not np.isfinite([*contributions.tolist(), score, baseline]).all():
        raise answer.malformed(f"with contributions or scores that are not {count} numbers")
    if history.size and not set(ids.tolist()) <= set(history.tolist()):
        raise answer.malformed("with items that are not in the history")
    return Explanation(ids, contributions, score, baseline, answer.model_version())


def _best(
    answer: Answer, ids: NDArray[np.int64], scores: NDArray[np.float32], row: Row
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the items and scores of a row as users see them, if they can be what was asked for."""
    listed = ids.tolist()
    is_whole = listed[-1] != contract.NO_ID  # as most are
    count = len(listed) if is_whole else listed.index(contract.NO_ID)
    distinct = set(listed[:count])
    if len(distinct) != count or (count and min(distinct) < 0) or (not is_whole and ids[count:].max() >= 0):
        raise answer.malformed("with items that are there twice, or are no item ids")
    for given in (row.history, row.exclude):
        if given.size and not distinct.isdisjoint(given.tolist()):
            raise answer.malformed("with items that were excluded")
    if row.allow.size and not distinct <= set(row.allow.tolist()):
        raise answer.malformed("with items that were not allowed")
    if not np.isfinite(scores[:count]).all():
        raise answer.malformed("with scores that are no numbers")
    # Beside ids that are none, minus infinity in place of `NO_SCORE`.
    return ids, scores if is_whole else np.where(ids == contract.NO_ID, np.float32(-np.inf), scores)


def _ids_before_tail(answer: Answer) -> tuple[NDArray[np.int64], int]:
    ids = answer.table(contract.ITEM_IDS, np.int64, 1)[0]
    count = int(np.count_nonzero(ids != contract.NO_ID))
    if (ids[:count] < 0).any():
        raise answer.malformed("with items that are no item ids")
    return ids[:count], count


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
