"""Arguments are checked before anything is sent; answers read as people expect."""

import numpy as np
import pytest

from fuserec.client import InvalidRequest, Query, Recommendations, Rules, ServerFault
from fuserec.client._wire import Answer, check, pack, pack_explain, pack_rank, unpack, unpack_explain, unpack_rank
from fuserec.contract import NO_SCORE
from fuserec.errors import UsageError


def packed(*queries: Query) -> dict[str, np.ndarray]:
    return pack([check(query) for query in queries])


def answer_of(**outputs: np.ndarray) -> Answer:
    return Answer(outputs, "3", "grpc://host:1")


def test_pack_gives_the_tensors_of_the_contract() -> None:
    tensors = packed(Query(42, [1, 2, 3], 10, [7]))
    assert {name: (array.dtype.name, array.tolist()) for name, array in tensors.items()} == {
        "user_id": ("int64", [[42]]),
        "history": ("int64", [[1, 2, 3]]),
        "exclude": ("int64", [[7]]),
        "k": ("int32", [[10]]),
    }


def test_nothing_known_is_packed_as_nothing() -> None:
    tensors = packed(Query(k=1))
    assert tensors["user_id"].tolist() == [[-1]]
    assert tensors["history"].shape == tensors["exclude"].shape == (1, 0)


@pytest.mark.parametrize(
    "ids",
    [[1, 2], (1, 2), np.array([1, 2], np.int32), np.array([1, 2], np.uint32), np.array([1, 9, 2, 9])[::2]],
    ids=["list", "tuple", "int32", "uint32", "strided"],
)
def test_ids_in_any_integer_form(ids: object) -> None:
    assert packed(Query(history=ids))["history"].tolist() == [[1, 2]]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((42, [], 0, []), "k came as 0, expected 1 to", id="k zero"),
        pytest.param((42, [], -1, []), "k came as -1", id="k negative"),
        pytest.param((42, [], 10**9, []), "k came as 1000000000", id="k huge"),
        pytest.param((42, [], 2.5, []), "k came as 2.5 .float", id="k not whole"),
        pytest.param((42, [], True, []), "k came as True", id="k bool"),
        pytest.param((-5, [], 1, []), "user_id came as -5", id="user negative"),
        pytest.param((2**63, [], 1, []), "user_id came as 9223372036854775808", id="user too large"),
        pytest.param(("bob", [], 1, []), "user_id came as 'bob' .str", id="user a string"),
        pytest.param((42, [1.5], 1, []), "history came with dtype float64", id="history floats"),
        pytest.param((42, ["a"], 1, []), "history came with dtype <U1", id="history strings"),
        pytest.param((42, [[1], [2]], 1, []), r"shape \(2, 1\)", id="history nested"),
        pytest.param((42, [[1], [2, 3]], 1, []), "history is not a list of item ids", id="history ragged"),
        pytest.param((42, [], 1, [2**63]), "exclude came with dtype uint64", id="exclude too large"),
        pytest.param((42, [], 1, [2**70]), "exclude came with dtype object", id="exclude far too large"),
        pytest.param((42, range(10_001), 1, []), "history came with 10001 ids", id="history too long"),
    ],
)
def test_wrong_argument_is_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        packed(Query(*arguments))  # type: ignore[arg-type]


def test_invalid_request_is_a_value_error_and_a_usage_error() -> None:
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(InvalidRequest, UsageError)


def test_answer_iterates_without_its_tail() -> None:
    outputs = answer_of(
        item_ids=np.array([[5, 9, -1]]),
        scores=np.array([[0.5, 0.25, NO_SCORE]], np.float32),
        fallback=np.array([[False]]),
        ignored=np.array([[2]], np.int32),
    )
    (answer,) = unpack(outputs, [check(Query(k=3))])
    assert isinstance(answer, Recommendations)
    assert list(answer) == [(5, 0.5), (9, 0.25)]
    assert (len(answer), answer.model_version, answer.fallback, answer.ignored) == (2, "3", False, 2)


def test_what_is_off_is_not_sent() -> None:
    assert set(packed(Query(1, [2], 3))) == {"user_id", "history", "exclude", "k"}
    tensors = packed(Query(1, [2], 3, history_only=True, text="quiet, slow"))
    assert tensors["history_only"].tolist() == [[True]]
    assert tensors["text"].tolist() == [[b"quiet, slow"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(7, "text came as 7 .int", id="no string"),
        pytest.param("  ", "text came empty", id="blank"),
        pytest.param("x" * 10_001, "text came with 10001 characters", id="too long"),
        pytest.param("\ud800", "cannot be sent as UTF-8", id="half a character"),
    ],
)
def test_text_is_checked(text: object, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        packed(Query(text=text))  # type: ignore[arg-type]


def test_rank_and_explain_are_checked_and_read() -> None:
    assert pack_rank(None, [], [3, 1])["candidates"].tolist() == [[3, 1]]
    with pytest.raises(InvalidRequest, match="candidates came empty"):
        pack_rank(None, [], [])
    with pytest.raises(InvalidRequest, match="item_id came as 'x'"):
        pack_explain(None, [], "x")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="history_only came as 1"):
        pack_explain(None, [], 3, history_only=1)  # type: ignore[arg-type]
    ranked = unpack_rank(
        answer_of(
            item_ids=np.array([[3, 1, -1]]),
            scores=np.array([[0.9, 0.1, NO_SCORE]], np.float32),
            ratings=np.array([[4.0, NO_SCORE, NO_SCORE]], np.float32),
            ignored=np.array([[1]], np.int32),
        ),
        np.array([1, 2, 3]),
    )
    assert [item for item, _ in ranked] == [3, 1] and len(ranked) == 2 and ranked.ignored == 1
    np.testing.assert_array_equal(ranked.ratings, np.array([4.0, np.nan], np.float32))
    assert ranked.ratings.dtype == np.float32
    explanation = unpack_explain(
        answer_of(
            item_ids=np.array([[5, 6]]),
            contributions=np.array([[0.25, -0.5]], np.float32),
            score=np.array([[0.5]], np.float32),
            baseline=np.array([[0.125]], np.float32),
        ),
        np.array([4, 5, 6]),
    )
    assert list(explanation) == [(5, 0.25), (6, -0.5)] and explanation.score == 0.5 and explanation.baseline == 0.125


def test_rows_of_unequal_length_are_padded() -> None:
    tensors = packed(
        Query(1, [5, 6], exclude=[7]),
        Query(2, [], k=3, allow=[8, 9], rules=Rules(diversity=0.5), text="quiet"),
        Query(3, [4], history_only=True),
    )
    assert {name: array.tolist() for name, array in tensors.items()} == {
        "user_id": [[1], [2], [3]],
        "history": [[5, 6], [-1, -1], [4, -1]],
        "exclude": [[7], [-1], [-1]],
        "k": [[10], [3], [10]],
        "allow": [[-1, -1], [8, 9], [-1, -1]],
        "rules": [[b""], [b'{"boosts": {}, "caps": {}, "diversity": 0.5}'], [b""]],
        "text": [[b""], [b"quiet"], [b""]],
        "history_only": [[False], [False], [True]],
    }
    assert tensors["rules"].dtype == tensors["text"].dtype == np.dtype(object)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        pytest.param(Query(allow=[3, -1]), "allow came with -1, which is no item id", id="no id allowed"),
        pytest.param(
            Query(rules={"diversity": 1}), "rules came as .* .dict., expected fuserec.client.Rules", id="rules"
        ),  # type: ignore[arg-type]
        pytest.param({"user_id": 1}, "a query came as .* .dict., expected fuserec.client.Query", id="no query"),
    ],
)
def test_what_is_new_is_checked(query: Query, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check(query)


def test_each_row_gets_its_own_length_and_version() -> None:
    outputs = answer_of(
        item_ids=np.array([[5, 9, 4], [6, -1, -1]]),
        scores=np.array([[0.5, 0.25, 0.1], [0.7, NO_SCORE, NO_SCORE]], np.float32),
        fallback=np.array([[False], [True]]),
        ignored=np.array([[2], [0]], np.int32),
        version=np.array([[1], [2]]),
    )
    first, second = unpack(outputs, [check(Query(k=3)), check(Query(k=1))])
    assert (list(first.item_ids), first.model_version, first.version, first.source) == ([5, 9, 4], "1", 1, "server")
    assert (list(second.item_ids), second.model_version, second.fallback) == ([6], "2", True)
    assert second.scores.tolist() == pytest.approx([0.7])


@pytest.mark.parametrize("sent", [NO_SCORE, -np.inf], ids=["finite", "as before 0.1"])
def test_what_is_none_scores_minus_infinity(sent: float) -> None:
    """Rows of unequal k: one that is whole, one with less left than asked for, one with nothing left."""
    rows = np.array([[5, 9, 4], [6, -1, -1], [-1, -1, -1]])
    scores = np.array([[0.5, 0.25, 0.125], [0.75, sent, sent], [sent, sent, sent]], np.float32)
    scores.flags.writeable = False  # as what came over the wire is
    nothing = np.zeros((3, 1), np.int32)
    outputs = answer_of(item_ids=rows, scores=scores, fallback=nothing.astype(bool), ignored=nothing)
    answers = unpack(outputs, [check(Query(k=k)) for k in (3, 2, 1)])
    assert [answer.scores.tolist() for answer in answers] == [[0.5, 0.25, 0.125], [0.75, -np.inf], [-np.inf]]
    assert all(answer.scores.dtype == np.float32 for answer in answers)


def test_no_score_is_the_lowest_finite_number() -> None:
    assert float(np.finfo(np.float32).min) == NO_SCORE


def test_answer_of_another_service_is_a_fault() -> None:
    with pytest.raises(
        ServerFault, match="grpc://host:1 answered without 'item_ids'; is it a fuserec repository"
    ) as caught:
        unpack(answer_of(logits=np.zeros((1, 2))), [check(Query())])
    assert caught.value.endpoint == "grpc://host:1"
