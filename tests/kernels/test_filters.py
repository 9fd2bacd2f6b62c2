"""Filters become rows, sorted and without repeats; what is ambiguous or of the wrong size is refused."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.kernels.filters import as_row_filter

IDS = np.array([10, 20, 30, 40])


def test_rows_are_sorted_and_unique_within_a_query() -> None:
    out = as_row_filter([[30, 10, 30, 99, -1], [], [40]], None, ids=IDS, batch=3)
    assert out.rows.tolist() == [0, 2, 3]
    assert out.offsets.tolist() == [0, 2, 2, 3]
    assert out.allow.shape == (0, 4)


def test_no_filter_is_no_rows_and_no_mask() -> None:
    out = as_row_filter(None, None, ids=IDS, batch=2)
    assert (out.rows.size, out.offsets.tolist(), out.allow.size) == (0, [0, 0, 0], 0)


def test_a_set_joins_the_mask_and_leaves_the_callers_alone() -> None:
    allow = np.array([True, True, False, True])
    out = as_row_filter(frozenset({20, 99}), allow, ids=IDS, batch=2)
    assert out.allow.tolist() == [[True, False, False, True]]
    assert allow.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([[10]], "exclude: got 1 id vectors, expected one for each of 2 queries"),
        (([10], [0, 1]), r"exclude offsets: got 2, expected batch \+ 1 = 3"),
        (([10], [0, 0, 2]), "exclude offsets: ends at 2, expected the number of ids, 1"),
        (([10], [20], [30]), r"exclude: got a tuple of 3, expected \(ids, offsets\)"),
        (np.array([10, 20]), r"exclude: got an array of shape \(2,\), expected a set"),
        ({10: 1}, "exclude: got dict, expected a set"),
        ([[10], [1.5]], r"exclude\[1\]: got dtype float64, expected integers"),
        ({1.5}, "exclude: got dtype float64, expected integers"),
    ],
    ids=["too_few", "csr_batch", "csr_end", "triple", "flat_array", "dict", "float", "float_set"],
)
def test_bad_exclusions_are_refused(exclude: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_row_filter(exclude, None, ids=IDS, batch=2)


@pytest.mark.parametrize(
    "allow",
    [np.ones(3, np.bool_), np.ones((3, 4), np.bool_), np.ones(4), [10, 20]],
    ids=["few", "batch", "float", "ids"],
)
def test_bad_masks_are_refused(allow: object) -> None:
    with pytest.raises(ValueError, match=r"allow: got shape .* expected bool of shape \(4,\) or \(2, 4\)"):
        as_row_filter(None, allow, ids=IDS, batch=2)
