"""Arguments are checked before anything is sent; answers read as people expect."""

import numpy as np
import pytest

from fuserec.client import InvalidRequest, Recommendations
from fuserec.client._wire import pack, pack_explain, pack_rank, unpack, unpack_explain, unpack_rank
from fuserec.errors import UsageError


def test_pack_gives_the_tensors_of_the_contract() -> None:
    tensors = pack(42, [1, 2, 3], 10, [7])
    assert {name: (array.dtype.name, array.tolist()) for name, array in tensors.items()} == {
        "user_id": ("int64", [[42]]),
        "history": ("int64", [[1, 2, 3]]),
        "exclude": ("int64", [[7]]),
        "k": ("int32", [[10]]),
    }


def test_nothing_known_is_packed_as_nothing() -> None:
    tensors = pack(None, [], 1, ())
    assert tensors["user_id"].tolist() == [[-1]]
    assert tensors["history"].shape == tensors["exclude"].shape == (1, 0)


@pytest.mark.parametrize(
    "ids",
    [[1, 2], (1, 2), np.array([1, 2], np.int32), np.array([1, 2], np.uint32), np.array([1, 9, 2, 9])[::2]],
    ids=["list", "tuple", "int32", "uint32", "strided"],
)
def test_ids_in_any_integer_form(ids: object) -> None:
    assert pack(None, ids, 1, ())["history"].tolist() == [[1, 2]]  # type: ignore[arg-type]


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
        pack(*arguments)  # type: ignore[arg-type]


def test_invalid_request_is_a_value_error_and_a_usage_error() -> None:
    assert issubclass(InvalidRequest, ValueError)
    assert issubclass(InvalidRequest, UsageError)


def test_answer_iterates_without_its_tail() -> None:
    outputs = {
        "item_ids": np.array([[5, 9, -1]]),
        "scores": np.array([[0.5, 0.25, -np.inf]], np.float32),
        "fallback": np.array([[False]]),
        "ignored": np.array([[2]], np.int32),
    }
    answer = unpack(outputs, "3")
    assert isinstance(answer, Recommendations)
    assert list(answer) == [(5, 0.5), (9, 0.25)]
    assert (len(answer), answer.model_version, answer.fallback, answer.ignored) == (2, "3", False, 2)


def test_what_is_off_is_not_sent() -> None:
    assert set(pack(1, [2], 3, [])) == {"user_id", "history", "exclude", "k"}
    tensors = pack(1, [2], 3, [], history_only=True, text="quiet, slow")
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
        pack(None, [], 1, [], text=text)  # type: ignore[arg-type]


def test_rank_and_explain_are_checked_and_read() -> None:
    assert pack_rank(None, [], [3, 1])["candidates"].tolist() == [[3, 1]]
    with pytest.raises(InvalidRequest, match="candidates came empty"):
        pack_rank(None, [], [])
    with pytest.raises(InvalidRequest, match="item_id came as 'x'"):
        pack_explain(None, [], "x")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="history_only came as 1"):
        pack_explain(None, [], 3, history_only=1)  # type: ignore[arg-type]
    ranked = unpack_rank(
        {
            "item_ids": np.array([[3, 1, -1]]),
            "scores": np.array([[0.9, 0.1, -np.inf]], np.float32),
            "ratings": np.array([[4.0, np.nan, np.nan]], np.float32),
            "ignored": np.array([[1]], np.int32),
        },
        "2",
    )
    assert [item for item, _ in ranked] == [3, 1] and len(ranked) == 2 and ranked.ignored == 1
    explanation = unpack_explain(
        {
            "item_ids": np.array([[5, 6]]),
            "contributions": np.array([[0.25, -0.5]], np.float32),
            "score": np.array([[0.5]], np.float32),
            "baseline": np.array([[0.125]], np.float32),
        },
        "2",
    )
    assert list(explanation) == [(5, 0.25), (6, -0.5)] and explanation.score == 0.5 and explanation.baseline == 0.125
