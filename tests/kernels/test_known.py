"""Known queries get the answers of `ItemIndex.search`, to the last bit, by whichever way they are found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numba
import numpy as np
import pytest

from fuserec.kernels import ExcludedRows, ItemIndex, KnownQueries, TopK
from fuserec.kernels.index import Metric
from fuserec.kernels.search import _known

N_QUERIES = 80


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = numba.get_num_threads()
    if request.param > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("a search is shared by two threads only where there are two cores")
    numba.set_num_threads(request.param)
    yield request.param
    numba.set_num_threads(before)


def made(
    n_items: int, metric: Metric = "dot", codes: Literal["int8", "none"] = "int8"
) -> tuple[ItemIndex, np.ndarray, ExcludedRows]:
    """Return an index, vectors, and lists of 0 to 40 rows, some of them the best of their query."""
    rng = np.random.default_rng(n_items)
    ids = rng.choice(10 * n_items, n_items, replace=False)
    index = ItemIndex.build(rng.standard_normal((n_items, 24)).astype(np.float32), ids, metric=metric, codes=codes)
    vectors = rng.standard_normal((N_QUERIES, 24)).astype(np.float32)
    best = index.search(vectors, 5).ids
    lists = [np.append(own[: at % 6], rng.choice(ids, at % 36)) for at, own in enumerate(best)]
    offsets = np.append(0, np.cumsum([len(one) for one in lists]))
    return index, vectors, index.excluded_rows(np.concatenate(lists), offsets)


def assert_same(got: TopK, expected: TopK) -> None:
    for name, one, other in zip(TopK._fields, got, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert one.dtype == other.dtype, name


@pytest.mark.parametrize("k", [1, 10, 200])
@pytest.mark.parametrize(
    ("n_items", "metric", "codes"),
    [(500, "dot", "int8"), (500, "cosine", "int8"), (500, "dot", "none"), (40_000, "dot", "int8")],
)
def test_the_answers_are_those_of_the_index(threads: int, n_items: int, metric: Metric, codes: str, k: int) -> None:
    index, vectors, excluded = made(n_items, metric, "int8" if codes == "int8" else "none")
    known = KnownQueries(index, vectors, excluded)
    rng = np.random.default_rng(1)
    for batch in (0, 1, 2, 33, 70):
        lists, rows = rng.integers(0, N_QUERIES, (2, batch))
        expected = index.search(vectors[rows], k, exclude=excluded.take(lists.tolist()))
        assert_same(known.search(lists, rows, k), expected)
        # The best of most of them, some that are in the list already, some unknown, some none.
        also = [np.append(ids[: at % 7], rng.integers(-1, 2 * n_items, at % 5)) for at, ids in enumerate(expected.ids)]
        taken = [np.append(index.ids[excluded.take([one]).rows], more) for one, more in zip(lists, also, strict=True)]
        got = known.search(lists, rows, k, also)
        assert_same(got, index.search(vectors[rows], k, exclude=taken))
        assert_same(got, index.search(vectors[rows], k, exclude=known.excluded(lists, also)))


def test_one_thread_takes_one_compiled_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fast is what runs: the search of the index is not asked."""
    index, vectors, excluded = made(500)
    known = KnownQueries(index, vectors, excluded)
    monkeypatch.setattr(ItemIndex, "search", None)
    first = np.zeros(1, np.int64)
    assert known.search(first, first, 10).ids.shape == (1, 10)


def test_a_query_that_is_not_proven_is_searched_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes cannot tell rows of one direction apart: more of them are candidates than there is room for."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(16)
    rows = direction * (1 + 1e-6 * rng.standard_normal((40_000, 1)))
    index = ItemIndex.build(rows.astype(np.float32))
    vectors = direction[None].astype(np.float32)
    excluded = index.excluded_rows(np.array([3, 5]), np.array([0, 2]))
    statuses = []
    search = _known.search_known
    monkeypatch.setattr(
        _known, "search_known", lambda *arguments: statuses.append(found := search(*arguments)) or found
    )
    first = np.zeros(1, np.int64)
    found = KnownQueries(index, vectors, excluded).search(first, first, 10)
    assert_same(found, index.search(vectors, 10, exclude=excluded))
    assert statuses == [1] and not found.certified.any(), "the case is too easy: its first pass was proven"


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_vectors_without_a_sound_score_are_refused_as_by_the_index(value: float) -> None:
    index, vectors, excluded = made(500)
    vectors[7, :2] = value
    known, seventh = KnownQueries(index, vectors, excluded), np.array([7])
    with pytest.raises(ValueError, match="query 0: got absolute values summing to"):
        known.search(seventh, seventh, 10)


def test_a_zero_vector_is_refused_under_cosine_as_by_the_index() -> None:
    index, vectors, excluded = made(500, "cosine")
    vectors[7] = 0
    with pytest.raises(ValueError, match="for the cosine metric to normalise"):
        KnownQueries(index, vectors, excluded).search(np.array([7]), np.array([7]), 10)


@pytest.mark.parametrize(("lists", "rows"), [([-1], [0]), ([0], [-1]), ([N_QUERIES], [0]), ([0], [N_QUERIES])])
@pytest.mark.parametrize("codes", ["int8", "none"], ids=["compiled", "the long way"])
def test_numbers_out_of_range_are_refused(lists: list[int], rows: list[int], codes: str) -> None:
    index, vectors, excluded = made(500, codes="int8" if codes == "int8" else "none")
    with pytest.raises(ValueError, match=r"got (lists|rows) .*, expected 0 to 79"):
        KnownQueries(index, vectors, excluded).search(np.array(lists), np.array(rows), 10)


def test_vectors_are_read_anew_by_each_search() -> None:
    index, vectors, excluded = made(500)
    known, third = KnownQueries(index, vectors, excluded), np.array([3])
    known.search(third, third, 10)
    vectors[3] = vectors[4]
    assert_same(known.search(third, third, 10), index.search(vectors[[4]], 10, exclude=excluded.take([3])))


def test_what_does_not_fit_the_index_is_refused() -> None:
    index, vectors, excluded = made(500)
    with pytest.raises(ValueError, match=r"vectors: got shape \(80, 23\), expected C-contiguous float32 of 24"):
        KnownQueries(index, vectors[:, :23], excluded)
    other, _, _ = made(600)
    with pytest.raises(ValueError, match="excluded: got lists over 500 items, expected 600"):
        KnownQueries(other, vectors, excluded)
