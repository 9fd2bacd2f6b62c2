"""Filters become rows, sorted and without repeats; what is ambiguous or of the wrong size is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fuserec.kernels.filters import ExcludedRows, as_row_filter

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


def test_checked_lists_are_taken_in_any_order() -> None:
    lists = ExcludedRows(np.array([1, 3, 0, 2]), np.array([0, 2, 2, 4]), 4)
    for taken in ([2], [1], [2, 0, 2], []):
        some = lists.take(taken)
        assert len(some) == len(taken)
        got = [some.rows[first:end].tolist() for first, end in itertools.pairwise(some.offsets)]
        assert got == [[[1, 3], [], [0, 2]][one] for one in taken]
        assert as_row_filter(some, None, ids=IDS, batch=len(taken)).rows is some.rows


@pytest.mark.parametrize("taken", [[-1], [0, 3]])
def test_lists_that_are_not_there_are_refused(taken: list[int]) -> None:
    lists = ExcludedRows(np.array([1, 3, 0, 2]), np.array([0, 2, 2, 4]), 4)
    with pytest.raises(ValueError, match=r"got lists .* to .*, expected 0 to 2"):
        lists.take(taken)


@pytest.mark.parametrize(
    ("rows", "offsets", "message"),
    [
        ([3, 1], [0, 2], "rows that do not ascend within a list"),
        ([1, 1], [0, 2], "rows that do not ascend within a list"),
        ([1, 4], [0, 2], r"beyond 0\.\.3"),
        ([-1, 2], [0, 2], r"beyond 0\.\.3"),
        ([1, 2], [0, 1], "exclude offsets: ends at 1, expected the number of ids, 2"),
        ([1, 2], [0, 2, 1, 2], "exclude offsets: got 1 after 2"),
    ],
    ids=["fall", "repeat", "beyond", "negative", "end", "offsets"],
)
def test_lists_are_checked_when_they_are_made(rows: list[int], offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExcludedRows(np.array(rows), np.array(offsets), 4)


def test_checked_lists_stay_as_they_are() -> None:
    """With rows in another order the kernels would let some of them pass."""
    rows = np.array([0, 2])
    lists = ExcludedRows(rows, np.array([0, 2]), 4)
    rows[:] = [3, 1]
    assert lists.rows.tolist() == [0, 2]
    with pytest.raises(ValueError, match="read-only"):
        lists.rows[0] = 1


@pytest.mark.parametrize(("batch", "ids"), [(2, IDS), (1, IDS[:3])])
def test_checked_lists_of_another_batch_or_index_are_refused(batch: int, ids: np.ndarray) -> None:
    lists = ExcludedRows(np.array([0, 2]), np.array([0, 2]), 4)
    with pytest.raises(ValueError, match="exclude: got 1 lists over 4 items, expected"):
        as_row_filter(lists, None, ids=ids, batch=batch)
