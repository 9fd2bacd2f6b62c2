"""The threshold that a first look at the rows gives: it may cost candidates, and must not cost the proof."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.kernels import ItemIndex

from .checks import assert_identical_topk, truth

ROWS, DIM = 40_000, 16  # sampled


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    return ItemIndex.build(np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32))


def queries(batch: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, DIM)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 9, 70])
@pytest.mark.parametrize("k", [1, 10, 100, 2500])
def test_normal_rows_are_proven_by_the_first_scan(index: ItemIndex, k: int, batch: int) -> None:
    got = index.search(queries(batch), k, backend="cpu")
    assert got.certified.all()
    want = index.search(queries(batch), k, backend="reference")
    assert (got.ids == want.ids).mean() > 0.999


def test_what_is_excluded_does_not_raise_the_threshold(index: ItemIndex) -> None:
    best = index.search(queries(3), 500, backend="cpu").ids
    got = index.search(queries(3), 20, exclude=best, backend="cpu")
    assert got.certified.all()
    assert got.ids.tolist() == index.search(queries(3), 520, backend="cpu").ids[:, 500:].tolist()


@pytest.mark.parametrize("shared", [True, False], ids=["one_mask", "a_mask_each"])
def test_what_is_not_allowed_does_not_raise_the_threshold(index: ItemIndex, shared: bool) -> None:
    best = index.search(queries(3), 2000, backend="cpu").ids
    allow = np.ones((3, ROWS), np.bool_)
    np.put_along_axis(allow, best, False, axis=1)
    if shared:
        allow = np.repeat(allow.all(axis=0, keepdims=True), 3, axis=0)
    got = index.search(queries(3), 20, allow=allow[0] if shared else allow, backend="cpu")
    assert got.certified.all()
    scores = np.where(allow, queries(3).astype(np.float64) @ index.embeddings.T.astype(np.float64), -np.inf)
    assert got.ids.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :20].tolist()


def test_padding_does_not_raise_the_threshold() -> None:
    # All scores are below 0, which is what the rows score that pad the last tile.
    index = ItemIndex.build(-np.abs(np.random.default_rng(0).standard_normal((ROWS + 1, DIM))).astype(np.float32))
    got = index.search(np.abs(queries(9)), 10, backend="cpu")
    assert got.certified.all()


def test_a_sample_that_misleads_costs_the_proof_and_not_the_answer() -> None:
    """The tiles that the sample looks at hold nearly all of the k best rows, so that it takes the k-th for better."""
    rows = np.full((ROWS, DIM), 0.25, np.float32)
    rows += np.random.default_rng(0).integers(0, 2, (ROWS, DIM)) / np.float32(64)
    sampled = (np.arange(ROWS) // 32 % 16 == 0) & (np.arange(ROWS) < ROWS // 8)
    rows[sampled] += 1
    index = ItemIndex.build(rows)
    query = np.ones((2, DIM), np.float32)
    k = int(sampled.sum())
    got = index.search(query, k + 50, backend="cpu")
    assert not got.certified.any()
    assert_identical_topk(got, truth(index, query), k + 50)
