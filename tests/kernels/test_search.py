"""One behaviour suite for every backend: what a search returns does not depend on where it ran."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuserec.kernels import Bag, ItemIndex, Lookup

from .checks import assert_identical_topk, assert_same_topk, truth

Floats = npt.NDArray[np.float32]


def integers(*shape: int, seed: int = 0) -> Floats:
    """Small integers: their products and sums are exact in float32, and ties are many."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def normals(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scattered_ids(rows: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Ids in no order and with gaps, so that a row taken for an id shows."""
    return np.random.default_rng(seed).permutation(3 * rows)[:rows] + 1000


# --- sizes ---


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 127, 128, 129])
def test_rows_around_a_block(backend: str, rows: int) -> None:
    index = ItemIndex.build(integers(rows, 5), scattered_ids(rows))
    query = integers(2, 5, seed=1)
    assert_identical_topk(index.search(query, 4, backend=backend), truth(index, query), 4)


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 63, 65, 130, 1025])
def test_any_width(backend: str, dim: int) -> None:
    index = ItemIndex.build(integers(40, dim), scattered_ids(40))
    query = integers(1, dim, seed=1)
    assert_identical_topk(index.search(query, 3, backend=backend), truth(index, query), 3)


@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17])
def test_any_batch(backend: str, batch: int) -> None:
    index = ItemIndex.build(integers(70, 6), scattered_ids(70))
    query = integers(batch, 6, seed=1)
    assert_identical_topk(index.search(query, 1, backend=backend), truth(index, query), 1)


@pytest.mark.parametrize("k", [1, 69, 70, 71, 200])
def test_any_k_with_a_tail_beyond_the_items(backend: str, k: int) -> None:
    index = ItemIndex.build(integers(70, 6), scattered_ids(70))
    query = integers(2, 6, seed=1)
    assert_identical_topk(index.search(query, k, backend=backend), truth(index, query), k)


def test_no_queries(backend: str) -> None:
    index = ItemIndex.build(integers(10, 4))
    got = index.search(np.empty((0, 4), np.float32), 3, exclude=[], backend=backend)
    assert (got.ids.shape, got.scores.shape, got.certified.shape) == ((0, 3), (0, 3), (0,))


@pytest.mark.parametrize("batch", [3, 16], ids=["multiply_and_sum", "matrix_product"])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_real_vectors_within_the_float32_bound(backend: str, batch: int, metric: str) -> None:
    index = ItemIndex.build(normals(150, 33), scattered_ids(150), metric=metric)
    query = normals(batch, 33, seed=1)
    assert_same_topk(index.search(query, 5, backend=backend), truth(index, query), 5)


def test_batch_equals_single(backend: str) -> None:
    index = ItemIndex.build(normals(60, 9))
    query = normals(3, 9, seed=1)
    together = index.search(query, 4, backend=backend)
    for b in range(3):
        alone = index.search(query[b : b + 1], 4, backend=backend)
        assert alone.ids[0].tolist() == together.ids[b].tolist()
        assert alone.scores[0].tolist() == together.scores[b].tolist()


# --- order ---


def test_duplicate_rows_tie_wherever_they_lie(backend: str) -> None:
    rows = np.repeat(normals(1, 37), 133, axis=0)
    ids = scattered_ids(133)
    got = ItemIndex.build(rows, ids).search(normals(1, 37, seed=1), 40, backend=backend)
    assert got.ids[0].tolist() == sorted(ids)[:40]
    assert len(set(got.scores[0].tolist())) == 1


def test_minus_zero_ties_with_zero(backend: str) -> None:
    index = ItemIndex.build(np.array([[-0.0], [0.0], [-0.0], [-1.0]], np.float32))
    got = index.search(np.array([[1.0], [-0.0]], np.float32), 4, backend=backend)
    assert got.ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert not np.signbit(got.scores[0, :3]).any()


def test_a_score_that_rounds_to_minus_zero_ties_with_zero(backend: str) -> None:
    index = ItemIndex.build(np.array([[0, 1], [0, -1]], np.float32), metric="cosine")
    got = index.search(np.array([[1e36, -1e-12]], np.float32), 2, backend=backend)  # scores -1e-48 and 1e-48
    assert got.ids.tolist() == [[0, 1]]
    assert not np.signbit(got.scores).any()


def test_negative_scores_beat_padding(backend: str) -> None:
    index = ItemIndex.build(-np.ones((33, 3), np.float32) - integers(33, 3) ** 2)
    query = np.ones((1, 3), np.float32)
    assert_identical_topk(index.search(query, 33, backend=backend), truth(index, query), 33)


def test_scores_near_the_ends_of_float32(backend: str) -> None:
    index = ItemIndex.build(np.array([[-1e19], [1e19], [1e-30], [1.5e19]], np.float32))
    got = index.search(np.array([[1e19]], np.float32), 4, backend=backend)
    assert got.ids.tolist() == [[3, 1, 2, 0]]
    assert np.isfinite(got.scores).all()


# --- queries ---


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_query_may_have_any_strides(backend: str, dtype: type) -> None:
    index = ItemIndex.build(integers(40, 6))
    wide = integers(12, 8, seed=1).astype(dtype)
    for query in (wide[::5, 1:7], wide[:6, :3].T[:, ::1], wide[:3, 6:0:-1]):
        if query.shape[1] == 6:
            assert_identical_topk(index.search(query, 3, backend=backend), truth(index, query), 3)


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "strided"])
def test_lookup(backend: str, transposed: bool) -> None:
    index = ItemIndex.build(integers(40, 6), scattered_ids(40))
    table = np.asfortranarray(integers(9, 6, seed=1)) if transposed else integers(9, 6, seed=1)
    query = Lookup(table, [8, 0, 8])
    assert_identical_topk(index.search(query, 5, backend=backend), truth(index, query), 5)


@pytest.mark.parametrize("batch", [3, 17])
@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "weighted"])
def test_bag(backend: str, batch: int, weighted: bool) -> None:
    index = ItemIndex.build(integers(40, 6), scattered_ids(40))
    lengths = np.resize([4, 1, 2], batch)  # powers of two, so that the means are exact
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = np.random.default_rng(2).integers(0, 9, offsets[-1])
    weights = integers(offsets[-1], seed=3) + 0.5 if weighted else None
    query = Bag(integers(9, 6, seed=1), ids, offsets, weights)
    assert_identical_topk(index.search(query, 3, backend=backend), truth(index, query), 3)


def test_bag_of_real_vectors(backend: str) -> None:
    index = ItemIndex.build(normals(40, 20))
    query = Bag(normals(30, 20, seed=1), np.arange(25), [0, 7, 25])
    assert_same_topk(index.search(query, 5, backend=backend), truth(index, query), 5)


def test_an_empty_bag_scores_zero(backend: str) -> None:
    index = ItemIndex.build(integers(40, 6), scattered_ids(40))
    got = index.search(Bag(integers(9, 6), [3], [0, 0, 1]), 3, backend=backend)
    assert got.ids[0].tolist() == index.ids[:3].tolist()
    assert got.scores[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(backend: str, value: float) -> None:
    index = ItemIndex.build(integers(5, 4))
    table = integers(3, 4)
    table[1, 2] = value
    for query in (table, Lookup(table, [0, 1]), Bag(table, [0, 2, 1], [0, 2, 3])):
        with pytest.raises(ValueError, match=r"query 1: got .* expected finite values"):
            index.search(query, 2, backend=backend)
    assert index.search(Lookup(table, [0, 2]), 1, backend=backend).certified.all()  # the row is not named


def test_a_query_whose_scores_could_overflow_is_refused(backend: str) -> None:
    index = ItemIndex.build(np.array([[1e20, -1e20]], np.float32))
    query = np.array([[1e19, 1e19]], np.float32)
    for refuse in (lambda: index.search(query, 1, backend=backend), lambda: index.check_vectors(query)):
        with pytest.raises(ValueError, match=r"query 0: .* fit float32 \(table entries reach 1e\+20\)"):
            refuse()
    index.check_vectors(query / 10)


def test_cosine_refuses_zero_queries(backend: str) -> None:
    index = ItemIndex.build(integers(5, 4) + 0.5, metric="cosine")
    for query in (np.zeros((1, 4), np.float32), Bag(integers(3, 4), [], [0, 0])):
        with pytest.raises(ValueError, match=r"query 0: got .* summing to 0.0, expected .* cosine"):
            index.search(query, 2, backend=backend)
    with pytest.raises(ValueError, match=r"query 1: got .* summing to 0.0, expected .* cosine"):
        index.check_vectors(np.array([[1, 0, 0, 0], [0, 0, 0, 0]], np.float32))


def test_cosine_ignores_length(backend: str) -> None:
    rows = normals(40, 6)
    query = normals(1, 6, seed=1)
    lengths = (2.0 ** np.arange(-20, 20)).astype(np.float32)
    plain = ItemIndex.build(rows, metric="cosine").search(query, 5, backend=backend)
    scaled = ItemIndex.build(rows * lengths[:, None], metric="cosine").search(
        query * np.float32(2**30), 5, backend=backend
    )
    assert plain.ids.tolist() == scaled.ids.tolist()
    assert plain.scores.tolist() == scaled.scores.tolist()
    assert (np.abs(plain.scores) <= 1 + 1e-6).all()


# --- filters ---


@pytest.mark.parametrize("form", ["list", "csr", "padded"])
def test_exclude_per_query(backend: str, form: str) -> None:
    index = ItemIndex.build(integers(70, 6), scattered_ids(70))
    query = integers(3, 6, seed=1)
    best = index.search(query, 70, backend="reference").ids
    lists = [best[0, :9], np.array([], np.int64), np.append(best[2, 3:40], [5, 5, best[2, 3]])]  # unknown, repeated
    exclude: object = lists
    if form == "csr":
        exclude = (np.concatenate(lists), np.cumsum([0, *map(len, lists)]))
    if form == "padded":
        exclude = np.full((3, 40), -1)
        for b, ids in enumerate(lists):
            exclude[b, : len(ids)] = ids
    kept = np.stack([~np.isin(index.ids, ids) for ids in lists])
    assert_identical_topk(index.search(query, 8, exclude=exclude, backend=backend), truth(index, query), 8, kept)


def test_exclude_for_the_batch(backend: str) -> None:
    index = ItemIndex.build(integers(40, 6), scattered_ids(40))
    query = integers(2, 6, seed=1)
    exclude = {int(index.ids[0]), int(index.ids[39]), 7}
    allow = np.arange(40) % 3 > 0
    kept = allow & ~np.isin(index.ids, list(exclude))
    got = index.search(query, 9, exclude=exclude, allow=allow, backend=backend)
    assert_identical_topk(got, truth(index, query), 9, kept)


@pytest.mark.parametrize("per_query", [False, True], ids=["batch", "per_query"])
def test_allow_with_exclude(backend: str, per_query: bool) -> None:
    index = ItemIndex.build(integers(70, 6), scattered_ids(70))
    query = integers(17, 6, seed=1)
    allow = np.random.default_rng(2).random((17, 70) if per_query else 70) < 0.5
    exclude = [index.ids[b : b + 30] for b in range(17)]
    kept = allow & np.stack([~np.isin(index.ids, ids) for ids in exclude])
    got = index.search(query, 3, exclude=exclude, allow=allow, backend=backend)
    assert_identical_topk(got, truth(index, query), 3, kept)


def test_all_items_excluded_but_one_or_none(backend: str) -> None:
    index = ItemIndex.build(integers(40, 6), scattered_ids(40))
    query = integers(2, 6, seed=1)
    got = index.search(query, 3, exclude=[index.ids[index.ids != index.ids[17]], index.ids], backend=backend)
    assert got.ids.tolist() == [[index.ids[17], -1, -1], [-1, -1, -1]]
    assert np.isneginf(got.scores[1]).all()
    got = index.search(query, 3, allow=np.zeros(40, np.bool_), backend=backend)
    assert (got.ids == -1).all()


def test_an_excluded_id_never_appears(backend: str) -> None:
    index = ItemIndex.build(np.ones((40, 2), np.float32))
    exclude = [[0, 31, 32, 39]]
    got = index.search(np.ones((1, 2), np.float32), 100, exclude=exclude, backend=backend)
    assert got.ids[0, :36].tolist() == sorted(set(range(40)) - {0, 31, 32, 39})
    assert (got.ids[0, 36:] == -1).all()


# --- invariants ---


@st.composite
def cases(draw: st.DrawFn) -> tuple[ItemIndex, object, int, object, npt.NDArray[np.bool_]]:
    rows, dim, batch = draw(st.integers(1, 70)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    distinct = integers(draw(st.integers(1, rows)), dim, seed=1)
    index = ItemIndex.build(distinct[rng.integers(0, len(distinct), rows)], rng.permutation(2 * rows)[:rows])
    table = integers(6, dim, seed=2)
    offsets = np.cumsum([0, *rng.choice([0, 1, 2, 4], batch)])
    query = draw(
        st.sampled_from(
            [
                table[rng.integers(0, 6, batch)],
                Lookup(table, rng.integers(0, 6, batch)),
                Bag(table, rng.integers(0, 6, offsets[-1]), offsets),
            ]
        )
    )
    exclude = [rng.integers(0, 2 * rows, rng.integers(0, rows)) for _ in range(batch)]
    kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
    return index, query, draw(st.integers(1, 75)), exclude, kept


def check_case(case: tuple[ItemIndex, object, int, object, npt.NDArray[np.bool_]], backend: str) -> None:
    index, query, k, exclude, kept = case
    got = index.search(query, k, exclude=exclude, backend=backend)
    assert_identical_topk(got, truth(index, query), k, kept)


@given(case=cases())
@settings(derandomize=True, deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_small_integers_are_exact(backend: str, case: tuple[ItemIndex, object, int, object, npt.NDArray]) -> None:
    check_case(case, backend)


@given(case=cases())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_small_integers_are_exact_in_many_cases_on_cpu(
    case: tuple[ItemIndex, object, int, object, npt.NDArray],
) -> None:
    check_case(case, "cpu")
