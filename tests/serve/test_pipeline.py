"""The pipeline answers every kind of user, alone and in a batch, and never with what it must not."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fuserec.contract import NO_ID
from fuserec.serve import stores
from fuserec.serve.explain import explain
from fuserec.serve.pipeline import Answer, Pipeline
from fuserec.serve.query import Query
from fuserec.serve.remembered import UserVectors
from fuserec.serve.users import NO_IDS
from fuserec.untrusted.tables import read_table

UNKNOWN = 10**12


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline.open(bundle)


@pytest.fixture(scope="module")
def histories(bundle: Path) -> dict[int, list[int]]:
    users = pl.read_parquet(bundle / "users.parquet")
    return dict(zip(users["user_id"].to_list(), users["history"].to_list(), strict=True))


@pytest.fixture(scope="module")
def catalogue(bundle: Path) -> pl.DataFrame:
    return pl.read_parquet(bundle / "items.parquet")


def ask(pipeline: Pipeline, query: Query) -> Answer:
    [answer] = pipeline.recommend([query])
    return answer


def test_each_table_is_read_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The items were read three times, which is felt with a million of them."""
    read = []

    def counting(path: Path, *arguments: Any, **options: Any) -> pl.DataFrame:
        read.append(path.name)
        return read_table(path, *arguments, **options)

    monkeypatch.setattr(stores, "read_table", counting)
    Pipeline.open(bundle)
    assert sorted(read) == ["items.parquet", "users.parquet"]


def test_known_user_gets_nothing_seen(pipeline: Pipeline, histories: dict[int, list[int]]) -> None:
    for user_id, history in histories.items():
        answer = ask(pipeline, Query(user_id, NO_IDS, NO_IDS, 10))
        assert not answer.fallback and answer.ignored == 0
        assert not set(answer.item_ids.tolist()) & set(history), f"user {user_id} was shown what they had"
        assert (np.diff(answer.scores) <= 0).all()


def test_stored_history_is_used_where_none_is_given(pipeline: Pipeline, histories: dict[int, list[int]]) -> None:
    user_id, history = next(iter(histories.items()))
    without = ask(pipeline, Query(user_id, NO_IDS, NO_IDS, 10))
    given = ask(pipeline, Query(user_id, ids(*history), NO_IDS, 10))
    np.testing.assert_array_equal(without.item_ids, given.item_ids)


def test_given_history_takes_precedence_and_is_not_recommended(pipeline: Pipeline, catalogue: pl.DataFrame) -> None:
    watched = catalogue["item_id"].to_numpy()[:3]
    stranger = ask(pipeline, Query(NO_ID, watched, NO_IDS, 20))
    assert not stranger.fallback
    assert not set(stranger.item_ids.tolist()) & set(watched.tolist())
    other = ask(pipeline, Query(NO_ID, watched[::-1].copy(), NO_IDS, 20))
    assert other.item_ids.tolist() != stranger.item_ids.tolist(), "the order of a history has no effect"


@pytest.mark.parametrize("user_id", [NO_ID, UNKNOWN], ids=["nobody", "unknown id"])
def test_fallback_is_flagged_and_popular(pipeline: Pipeline, catalogue: pl.DataFrame, user_id: int) -> None:
    answer = ask(pipeline, Query(user_id, NO_IDS, NO_IDS, 5))
    popular = catalogue.sort(["count", "item_id"], descending=[True, False])["item_id"].head(5).to_list()
    assert answer.fallback
    assert answer.item_ids.tolist() == popular


def test_history_of_unknown_ids_alone_is_a_fallback_and_counted(pipeline: Pipeline) -> None:
    answer = ask(pipeline, Query(UNKNOWN, ids(1, 2), ids(3), 5))
    assert (answer.fallback, answer.ignored) == (True, 3)


def test_unknown_ids_are_ignored_and_counted(pipeline: Pipeline, catalogue: pl.DataFrame) -> None:
    known = catalogue["item_id"].to_numpy()[:2]
    clean = ask(pipeline, Query(NO_ID, known, NO_IDS, 5))
    mixed = ask(pipeline, Query(NO_ID, ids(1, known[0], 2, NO_ID, known[1]), ids(NO_ID, 4), 5))
    assert mixed.ignored == 3, "NO_ID is padding and not counted"
    np.testing.assert_array_equal(mixed.item_ids, clean.item_ids)
    np.testing.assert_array_equal(mixed.scores, clean.scores)


def test_excluded_items_never_come_back(pipeline: Pipeline, histories: dict[int, list[int]]) -> None:
    user_id = next(iter(histories))
    first = ask(pipeline, Query(user_id, NO_IDS, NO_IDS, 10)).item_ids
    second = ask(pipeline, Query(user_id, NO_IDS, first, 10)).item_ids
    assert not set(first.tolist()) & set(second.tolist())


@pytest.mark.parametrize("user_id", [5, UNKNOWN], ids=["model", "fallback"])
def test_tail_where_items_run_out(pipeline: Pipeline, catalogue: pl.DataFrame, user_id: int) -> None:
    keep = catalogue["item_id"].to_numpy()[-4:]
    answer = ask(pipeline, Query(user_id, NO_IDS, catalogue["item_id"].to_numpy()[:-4], 400))
    assert len(answer.item_ids) == len(answer.scores) == 400
    left = answer.item_ids[answer.item_ids != NO_ID]
    assert 0 < len(left) <= 4 and set(left.tolist()) <= set(keep.tolist())
    assert (answer.item_ids[len(left) :] == NO_ID).all() and np.isneginf(answer.scores[len(left) :]).all()


def test_everything_excluded(pipeline: Pipeline, catalogue: pl.DataFrame) -> None:
    answer = ask(pipeline, Query(5, NO_IDS, catalogue["item_id"].to_numpy(), 3))
    assert answer.item_ids.tolist() == [NO_ID] * 3


def test_batch_equals_single(pipeline: Pipeline, histories: dict[int, list[int]], catalogue: pl.DataFrame) -> None:
    rng = np.random.default_rng(0)
    items = catalogue["item_id"].to_numpy()
    queries = [
        Query(
            int(rng.choice([*histories, UNKNOWN, NO_ID])),
            rng.choice(items, rng.integers(0, 60)),
            rng.choice(items, rng.integers(0, 30)),
            int(rng.integers(1, 40)),
        )
        for _ in range(150)
    ]
    for query, batched in zip(queries, pipeline.recommend(queries), strict=True):
        single = ask(pipeline, query)
        np.testing.assert_array_equal(batched.item_ids, single.item_ids)
        assert batched.scores.tobytes() == single.scores.tobytes(), "other rows changed the last bits of the scores"
        assert len(batched.item_ids) == query.k


def test_no_queries(pipeline: Pipeline) -> None:
    assert pipeline.recommend([]) == []
    assert pipeline.encode([]).vectors.shape == (0, pipeline.dim)


def test_history_only_neither_reads_nor_excludes_what_is_stored(
    pipeline: Pipeline, histories: dict[int, list[int]]
) -> None:
    user_id, history = next(iter(histories.items()))
    given = ids(*history[:2])
    everything = ask(pipeline, Query(user_id, given, NO_IDS, 300, history_only=True)).item_ids
    assert set(history[2:]) - set(history[:2]) <= set(everything.tolist()), "what is stored was excluded all the same"
    assert not set(history[:2]) & set(everything.tolist())
    bare = ask(pipeline, Query(user_id, NO_IDS, NO_IDS, 300, history_only=True))
    assert not bare.fallback, "the user is known, if not by their history"
    assert set(history) <= set(bare.item_ids.tolist())


def test_a_text_is_refused_by_a_model_that_reads_none(pipeline: Pipeline) -> None:
    assert not pipeline.reads_text
    with pytest.raises(ValueError, match="a text came, and the model reads none"):
        ask(pipeline, Query(NO_ID, NO_IDS, NO_IDS, 5, text="something quiet"))


def test_explanation_is_what_leaving_an_item_out_changes(pipeline: Pipeline, histories: dict[int, list[int]]) -> None:
    user_id, history = next(iter(histories.items()))
    query = Query(user_id, NO_IDS, NO_IDS, 1)
    best = ask(pipeline, query)
    item = int(best.item_ids[0])
    explanation = explain(pipeline, query, item)
    assert explanation.item_ids.tolist() == history[-20:]
    assert explanation.score == pytest.approx(float(best.scores[0]), abs=1e-6)
    for place in (0, len(explanation.item_ids) - 1):
        rest = np.delete(explanation.item_ids, place)
        changed = pipeline.encode([Query(user_id, rest, NO_IDS, 1, history_only=True)]).vectors
        want = explanation.score - pipeline.scores(changed, item)[0]
        assert explanation.contributions[place] == pytest.approx(want, abs=1e-5)


def test_an_item_that_is_not_in_the_catalogue_cannot_be_explained(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="which the catalogue does not hold"):
        explain(pipeline, Query(NO_ID, NO_IDS, NO_IDS, 1), UNKNOWN)


def test_those_whose_vectors_are_kept_get_the_same_answers(bundle: Path, histories: dict[int, list[int]]) -> None:
    """The second call of a known user goes a shorter way; one of a batch who asks for more takes all the long one."""
    pipeline = Pipeline.open(bundle)
    plain = [Query(user_id, NO_IDS, NO_IDS, 5 + user_id % 7) for user_id in list(histories)[:20]]
    other = Query(UNKNOWN, NO_IDS, ids(7), 3)
    users = pipeline._users.numbers(plain)
    assert pipeline._recall.kept(users) is None
    first = pipeline.recommend(plain)
    assert pipeline._recall.kept(users) is not None
    assert pipeline._recall.kept(pipeline._users.numbers([*plain, other])) is None
    for again in (pipeline.recommend(plain), pipeline.recommend([*plain, other])[:-1]):
        for one, two in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.item_ids, two.item_ids)
            np.testing.assert_array_equal(one.scores, two.scores)
            assert (one.fallback, one.ignored, one.version) == (two.fallback, two.ignored, two.version)


def test_users_who_share_a_place_get_their_own(
    bundle: Path, histories: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for three vectors, whoever is computed anew takes somebody's place, also within a batch."""
    users = list(histories)[:40]
    whole = Pipeline.open(bundle)
    expected = [ask(whole, Query(user_id, NO_IDS, NO_IDS, 5)) for user_id in users]
    monkeypatch.setattr(
        "fuserec.serve.recall.UserVectors", functools.partial(UserVectors, most_bytes=3 * 4 * whole.dim)
    )
    small = Pipeline.open(bundle)
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 40, 100):
        rows = rng.integers(0, len(users), size).tolist()
        answers = small.recommend([Query(users[row], NO_IDS, NO_IDS, 5) for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            np.testing.assert_array_equal(answer.item_ids, expected[row].item_ids)
            np.testing.assert_array_equal(answer.scores, expected[row].scores)
