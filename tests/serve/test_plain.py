"""Plain requests are answered by a way of their own, with the answers of all others, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fuserec import contract
from fuserec.contract import EXCLUDE, HISTORY, MAX_EXCLUDE, MAX_HISTORY, MAX_K, NO_ID, USER_ID, K
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.plain import PlainAnswers, read_plain
from fuserec.serve.query import Query


class Tensor:
    """As the server hands one over."""

    def __init__(self, name: str, value: Any, dtype: type = np.int64) -> None:
        self._name, self._value = name, np.array(value, dtype=dtype)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._value


def request(user: int, history: list[int], exclude: list[int], k: int) -> list[Tensor]:
    tensors = [Tensor(USER_ID, [[user]]), Tensor(HISTORY, [history]), Tensor(K, [[k]], np.int32)]
    return [*tensors, Tensor(EXCLUDE, [exclude])]


def query(user: int, history: list[int], exclude: list[int], k: int) -> Query:
    lists = (np.array([item for item in items if item != NO_ID], dtype=np.int64) for items in (history, exclude))
    return Query(user, *lists, k)


@pytest.fixture(scope="module")
def asked(bundle: Path) -> list[tuple[int, list[int], list[int], int]]:
    """Known users, strangers with a history, both; ids nobody knows, repeats, padding, long and short lists."""
    users, items = pl.read_parquet(bundle / "users.parquet"), pl.read_parquet(bundle / "items.parquet")
    rng = np.random.default_rng(3)
    ids, known = users["user_id"].to_numpy(), items["item_id"].to_numpy()

    def some(most: int) -> list[int]:
        drawn = rng.choice(known, rng.integers(0, most + 1)).tolist()
        return [NO_ID if rng.random() < 0.1 else 3 if rng.random() < 0.1 else item for item in drawn]

    found = []
    for number in range(300):
        user = int(rng.choice(ids)) if number % 3 else NO_ID if number % 2 else 10**12
        history = [*some(70), int(rng.choice(known))] if number % 3 == 0 or rng.random() < 0.5 else []
        found.append((user, history, some(30) if rng.random() < 0.3 else [], int(rng.integers(1, 40))))
    return found


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_the_answers_are_those_of_all_requests(
    bundle: Path, asked: list[tuple[int, list[int], list[int], int]], size: int
) -> None:
    plain, other = Pipeline.open(bundle), Pipeline.open(bundle)
    for at in range(0, len(asked), size):
        batch = asked[at : at + size]
        read = read_plain([request(*one) for one in batch])
        assert read is not None
        answers = plain.recommend_plain(read)
        assert isinstance(answers, PlainAnswers)
        expected = other.recommend([query(*one) for one in batch])
        for row, (one, answer) in enumerate(zip(batch, expected, strict=True)):
            k = one[3]
            np.testing.assert_array_equal(answers.item_ids[row, :k], answer.item_ids, err_msg=str(one))
            np.testing.assert_array_equal(answers.scores[row, :k], answer.scores, err_msg=str(one))
            assert answers.ignored[row] == answer.ignored and not answer.fallback, one


def test_somebody_of_whom_nothing_is_known_is_not_plain(bundle: Path) -> None:
    pipeline = Pipeline.open(bundle)
    for history in ([], [NO_ID], [3]):
        read = read_plain([request(10**12, history, [], 5)])
        assert read is not None and pipeline.recommend_plain(read) is None


def test_users_without_vectors_share_a_batch_with_those_who_have_one(bundle: Path) -> None:
    """Vectors that were computed for one answer are found again by the next, and by the other way."""
    ids = pl.read_parquet(bundle / "users.parquet")["user_id"].to_list()
    pipeline = Pipeline.open(bundle)
    first = [query(user, [], [], 5) for user in ids[:4]]
    expected = Pipeline.open(bundle).recommend([query(user, [], [], 5) for user in ids[:8]])
    pipeline.recommend(first)
    read = read_plain([request(user, [], [], 5) for user in ids[:8]])
    assert read is not None
    for _ in range(2):
        answers = pipeline.recommend_plain(read)
        assert answers is not None
        np.testing.assert_array_equal(answers.item_ids, [answer.item_ids for answer in expected])
    pipeline._recall._engine = None  # type: ignore[assignment]  # every vector is kept by now
    again = pipeline.recommend([query(user, [], [], 5) for user in ids[:8]])
    np.testing.assert_array_equal(answers.scores, [answer.scores for answer in again])


USER, HOW_MANY = Tensor(USER_ID, [[5]]), Tensor(K, [[5]], np.int32)


@pytest.mark.parametrize(
    "tensors",
    [
        pytest.param([HOW_MANY], id="no user"),
        pytest.param([USER], id="no k"),
        pytest.param([USER, Tensor(K, [[0]], np.int32)], id="k of 0"),
        pytest.param([USER, Tensor(K, [[MAX_K + 1]], np.int32)], id="k beyond the limit"),
        pytest.param([USER, Tensor(K, [5], np.int32)], id="no batch axis"),
        pytest.param([Tensor(USER_ID, [[5], [6]]), Tensor(K, [[5], [5]], np.int32)], id="two rows"),
        pytest.param([Tensor(USER_ID, np.empty((0, 1))), Tensor(K, np.empty((0, 1)), np.int32)], id="no rows"),
        pytest.param([USER, HOW_MANY, Tensor(HISTORY, [[1], [2]])], id="other rows"),
        pytest.param([USER, HOW_MANY, Tensor(HISTORY, np.ones((1, MAX_HISTORY + 1)))], id="long history"),
        pytest.param([USER, HOW_MANY, Tensor(EXCLUDE, np.ones((1, MAX_EXCLUDE + 1)))], id="long exclude"),
        pytest.param([USER, HOW_MANY, Tensor(contract.ALLOW, [[1]])], id="allow"),
        pytest.param([USER, HOW_MANY, Tensor(contract.HISTORY_ONLY, [[False]], np.bool_)], id="history only"),
        pytest.param([USER, HOW_MANY, Tensor(contract.RULES, [[b""]], np.object_)], id="rules"),
    ],
)
def test_what_is_not_plain_goes_the_way_of_all_others(tensors: list[Tensor]) -> None:
    """That way says what is wrong, or does what was asked."""
    assert read_plain([[USER, HOW_MANY]]) is not None
    assert read_plain([tensors]) is None
    assert read_plain([[USER, HOW_MANY], tensors]) is None
