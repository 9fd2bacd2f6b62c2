"""Selection and sorting of what a scan keeps."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.kernels.search import keys
from fuserec.kernels.search._numba_score import pack_key
from fuserec.kernels.search._numba_select import kth_largest, sort_by_score

RNG = np.random.default_rng(0)
NUMBERS = {
    "normal": RNG.standard_normal(3000),
    "negative": -np.abs(RNG.standard_normal(3000)),
    "many_equal": RNG.integers(-3, 4, 3000),
    "all_equal": np.full(3000, -0.5),
    "many_magnitudes": RNG.standard_normal(3000) * 10.0 ** RNG.integers(-40, 38, 3000),
    "infinities": RNG.choice([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf], 3000),
}


@pytest.mark.parametrize("size", [1, 2, 191, 192, 3000])
@pytest.mark.parametrize("kind", NUMBERS)
def test_kth_largest_is_that_of_a_sort(kind: str, size: int) -> None:
    values = NUMBERS[kind][:size].astype(np.float32)
    want = np.sort(values)[::-1]
    for k in {1, 2, size // 3 + 1, size}:
        if k <= size:
            assert kth_largest(values.copy(), size, k) == want[k - 1], f"k = {k}"


def test_kth_largest_looks_at_no_more_than_it_is_told() -> None:
    values = np.array([1, 2, 3, 100], np.float32)
    assert kth_largest(values, 3, 1) == 3


@pytest.mark.parametrize("size", [0, 1, 63, 64, 3000])
@pytest.mark.parametrize("kind", [kind for kind in NUMBERS if kind != "infinities"])
def test_keys_are_sorted_by_score_then_row(kind: str, size: int) -> None:
    scores = NUMBERS[kind][:size].astype(np.float32)
    packed = np.array([pack_key(score, row) for row, score in enumerate(scores)], np.int64)
    rows, sorted_scores = keys.unpack(sort_by_score(packed, size))
    order = np.lexsort((np.arange(size), -scores))
    assert rows.tolist() == order.tolist()
    assert sorted_scores.tolist() == scores[order].tolist()
