"""Rows of unequal length against plain Python lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuserec.train.ragged import Ragged

ROWS = st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=6)


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


@given(ROWS)
def test_round_trip(rows: list[list[int]]) -> None:
    ragged = Ragged.from_rows(rows)
    assert as_lists(ragged) == rows
    assert ragged.row_of_value.tolist() == [index for index, row in enumerate(rows) for _ in row]


@given(ROWS, st.data())
def test_take(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = Ragged.from_rows(rows).take(np.array(chosen, dtype=np.int64))
    assert as_lists(taken) == [rows[index] for index in chosen]


@given(ROWS, st.data())
def test_without_last(rows: list[list[int]], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(0, len(row))) for row in rows]
    shorter = Ragged.from_rows(rows).without_last(np.array(counts))
    assert as_lists(shorter) == [row[: len(row) - count] for row, count in zip(rows, counts, strict=True)]


@given(ROWS, st.integers(-8, 8), st.integers(1, 9))
def test_windows_read_zero_outside(rows: list[list[int]], start: int, width: int) -> None:
    ragged = Ragged.from_rows([*rows, [1]])  # a row of its own, as windows of nothing at all have no values to read
    index = np.arange(len(ragged))
    expected = [[row[p] if 0 <= p < len(row) else 0 for p in range(start, start + width)] for row in [*rows, [1]]]
    assert ragged.windows(index, np.full(index.size, start), width).tolist() == expected


def test_left_padded_keeps_the_most_recent() -> None:
    ragged = Ragged.from_rows([[1, 2, 3, 4], [5], []])
    assert ragged.left_padded(np.array([0, 1, 2]), 3).tolist() == [[2, 3, 4], [0, 0, 5], [0, 0, 0]]


@pytest.mark.parametrize("offsets", [[], [0, 2], [1, 3], [0, 4, 3]], ids=["none", "short", "late", "falling"])
def test_offsets_must_span_the_values(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        Ragged(np.arange(3), np.array(offsets, dtype=np.int64))
