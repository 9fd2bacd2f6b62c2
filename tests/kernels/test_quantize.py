"""The codes and their bounds, held to exact rational arithmetic: a bound that is nearly right is wrong."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fuserec.kernels.quantize import (
    LARGEST_CODED,
    SMALLEST_CODED,
    Codes,
    quantize_queries,
    quantize_rows,
    round_up,
    score_error,
    upper_norms,
)

Floats = npt.NDArray[np.float32]

rows_of_any_size = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 9)),
    elements=st.floats(-(2.0**120), 2.0**120, width=32) | st.floats(-1, 1, width=32),
)


def exact(values: npt.NDArray[Any]) -> list[Fraction]:
    return [Fraction(value) for value in values.tolist()]


def squared_norm(values: list[Fraction]) -> Fraction:
    return sum((value**2 for value in values), Fraction(0))


def assert_residuals_hold(rows: Floats) -> Codes:
    codes = quantize_rows(rows)
    assert (codes.values.dtype, codes.scale.dtype, codes.residual.dtype) == (np.int8, np.float32, np.float32)
    assert np.abs(codes.values.astype(int)).max() <= 127
    for n in range(len(rows)):
        scale = Fraction(float(codes.scale[n]))
        left = [e - scale * c for e, c in zip(exact(rows[n]), exact(codes.values[n]), strict=True)]
        if np.isfinite(codes.residual[n]):
            assert squared_norm(left) <= Fraction(float(codes.residual[n])) ** 2
    return codes


@pytest.mark.parametrize("magnitude", [1e-20, 1e-7, 1.0, 1e7, 1e20])
@pytest.mark.parametrize("dim", [1, 3, 64, 129])
def test_residuals_hold_and_are_small(dim: int, magnitude: float) -> None:
    rows = np.random.default_rng(dim).standard_normal((5, dim)) * magnitude
    codes = assert_residuals_hold(rows.astype(np.float32))
    assert (codes.scale > 0).all()
    # Each entry is off by half a step at most.
    assert (codes.residual <= codes.scale * np.sqrt(dim) * 0.5001).all()


@given(rows=rows_of_any_size)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_residuals_hold_for_any_rows(rows: Floats) -> None:
    assert_residuals_hold(rows)


@pytest.mark.parametrize(
    "value",
    [0.0, 1e-45, 1e-38, np.nextafter(np.float32(SMALLEST_CODED), np.float32(0)), 2 * LARGEST_CODED, 3e38],
)
def test_rows_beyond_the_range_have_a_residual_of_their_norm(value: float) -> None:
    codes = assert_residuals_hold(np.array([[value, -value / 2]], np.float32))
    assert codes.scale[0] == 0
    assert (codes.values == 0).all()
    assert codes.residual[0] >= np.float32(value)


def test_a_norm_beyond_float32_is_an_infinite_residual() -> None:
    assert quantize_rows(np.full((1, 9), 3e38, np.float32)).residual.tolist() == [np.inf]


def test_rows_on_the_grid_lose_nothing() -> None:
    rows = np.array([[127, -3, 0], [-254, 2, 8]], np.float32)
    codes = quantize_rows(rows)
    assert codes.residual.tolist() == [0, 0]
    assert (codes.values * codes.scale[:, None]).tolist() == rows.tolist()


def test_one_huge_entry_takes_the_whole_grid() -> None:
    row = np.full((1, 8), 0.25, np.float32)
    row[0, 5] = -1000
    codes = assert_residuals_hold(row)
    assert codes.values.tolist() == [[0, 0, 0, 0, 0, -127, 0, 0]]


def test_many_rows_are_coded_block_by_block() -> None:
    rows = np.random.default_rng(0).standard_normal((5000, 300)).astype(np.float32)
    whole, some = quantize_rows(rows), quantize_rows(rows[4000:])
    assert (whole.values[4000:] == some.values).all()
    assert (whole.residual[4000:] == some.residual).all()


def test_too_many_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="got 65537 columns, expected at most 65536"):
        quantize_rows(np.ones((1, 65537), np.float32))


def test_codes_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(N, D\), \(N,\) and \(N,\)"):
        Codes(np.zeros((2, 3), np.int8), np.zeros(2, np.float32), np.zeros(3, np.float32))


@given(values=hnp.arrays(np.float64, 4, elements=st.floats(0, 1e300)))
@settings(derandomize=True, deadline=None)
def test_rounding_up_is_up_by_less_than_a_step(values: npt.NDArray[np.float64]) -> None:
    rounded = round_up(values)
    assert (rounded.astype(np.float64) >= values).all()
    below = np.nextafter(rounded, np.float32(-np.inf)).astype(np.float64)
    assert (below < values).all() | (values == 0).any()


# --- the bound on scores ---


def float32_sums(query: Floats, row: Floats) -> list[float]:
    """Float32 scores in three orders of summation."""
    products = query * row
    pairs = products.copy()
    while len(pairs) > 1:
        pairs = np.append(pairs[::2][: len(pairs) // 2] + pairs[1::2], pairs[len(pairs) - len(pairs) % 2 :])
    forward, backward = np.float32(0), np.float32(0)
    for product, reverse in zip(products, products[::-1], strict=True):
        forward, backward = forward + product, backward + reverse
    return [float(forward), float(backward), float(pairs[0])]


def assert_bound_holds(queries: Floats, rows: Floats) -> None:
    items, asked = quantize_rows(rows), quantize_queries(queries)
    reach = upper_norms(rows) + items.residual
    bounds = score_error(asked.norm, asked.error, items.residual, reach, rows.shape[1])
    for b in range(len(queries)):
        assert squared_norm(exact(queries[b])) <= Fraction(float(asked.norm[b])) ** 2
        for n in range(len(rows)):
            total = sum(int(w) * int(c) for w, c in zip(asked.values[b], items.values[n], strict=True))
            coded = Fraction(float(asked.scale[b])) * Fraction(float(items.scale[n])) * total
            for score in float32_sums(queries[b], rows[n]):
                if np.isfinite(bounds[b, n]) and np.isfinite(score):
                    assert abs(Fraction(score) - coded) <= Fraction(float(bounds[b, n]))


@given(data=st.data(), dim=st.integers(1, 9))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_the_bound_holds_for_any_queries_and_rows(data: st.DataObject, dim: int) -> None:
    entries = (
        st.floats(-(2.0**60), 2.0**60, width=32)
        | st.floats(-1, 1, width=32)
        | st.floats(-(2.0**-110), 2.0**-110, width=32)
    )
    queries = data.draw(hnp.arrays(np.float32, (2, dim), elements=entries))
    rows = data.draw(hnp.arrays(np.float32, (2, dim), elements=entries))
    assert_bound_holds(queries, rows)


def test_the_bound_holds_where_it_is_tight() -> None:
    """Every entry half a step off the grid, and the query along what is left over."""
    dim = 200
    codes = np.resize([100, -31, 7], dim)
    codes[0] = 127
    rows = (codes + np.resize([0.499, -0.499], dim) * (np.arange(dim) > 0)).astype(np.float32)[None]
    items = quantize_rows(rows)
    left = rows - items.scale[:, None] * items.values
    assert_bound_holds(left.astype(np.float32), rows)
    asked = quantize_queries(left)
    bound = score_error(asked.norm, asked.error, items.residual, upper_norms(rows), dim)
    # Nearly nothing to spare in the residual's term: ||q|| r is all of it but for the query's own error.
    assert (asked.norm * items.residual)[0] <= float((left @ left.T)[0, 0]) * 1.001
    assert bound[0, 0] > float((left @ left.T)[0, 0])


def test_a_zero_query_loses_nothing_even_against_an_infinite_residual() -> None:
    asked = quantize_queries(np.zeros((1, 4), np.float32))
    infinite = np.array([np.inf], np.float32)
    assert score_error(asked.norm, asked.error, infinite, infinite, 4).tolist() == [[0.0]]
