"""Rows of unequal length in two flat arrays, as in a CSR matrix: users' histories, without a Python list each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """Row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: (N,) int64.
        offsets: (rows + 1,) int64, rising from 0 to N.
    """

    values: IntArray
    offsets: IntArray

    def __post_init__(self) -> None:
        if self.offsets.ndim != 1 or self.values.ndim != 1 or self.offsets.size == 0:
            raise ValueError(
                f"values and offsets have shapes {self.values.shape} and {self.offsets.shape}; "
                "expected (N,) and (rows + 1,)"
            )
        if self.offsets[0] != 0 or self.offsets[-1] != self.values.size or bool((np.diff(self.offsets) < 0).any()):
            raise ValueError(f"offsets must rise from 0 to {self.values.size}, the number of values")

    @classmethod
    def from_rows(cls, rows: Iterable[Iterable[int]]) -> Ragged:
        """Build from a list of lists."""
        lists = [list(row) for row in rows]
        values = np.array([value for row in lists for value in row], dtype=np.int64)
        return cls.from_lengths(values, np.array([len(row) for row in lists], dtype=np.int64))

    @classmethod
    def from_lengths(cls, values: IntArray, lengths: NDArray[Any]) -> Ragged:
        """Build from the concatenated rows and the length of each."""
        offsets = np.zeros(lengths.size + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, row: int) -> IntArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """(rows,) int64."""
        return np.diff(self.offsets)

    @property
    def row_of_value(self) -> IntArray:
        """(N,) int64: the row each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, rows: IntArray) -> Ragged:
        """Return the given rows, in the given order."""
        lengths = self.lengths[rows]
        taken = Ragged.from_lengths(np.empty(int(lengths.sum()), dtype=np.int64), lengths)
        source = np.arange(taken.values.size) - taken.offsets[:-1].repeat(lengths) + self.offsets[rows].repeat(lengths)
        return Ragged(self.values[source], taken.offsets)

    def without_last(self, counts: NDArray[Any]) -> Ragged:
        """Return each row without its last `counts[row]` values; (rows,) int, at most the row's length."""
        lengths = self.lengths - counts
        position = np.arange(self.values.size) - self.offsets[:-1].repeat(self.lengths)
        return Ragged.from_lengths(self.values[position < lengths.repeat(self.lengths)], lengths)

    def windows(self, rows: IntArray, starts: IntArray, width: int) -> IntArray:
        """Cut one window out of each given row; what lies before or after the row reads 0.

        Args:
            rows: (B,) int64.
            starts: (B,) int64, position in the row of the first column; may be negative.
            width: columns.

        Returns:
            (B, width) int64.
        """
        position = starts[:, None] + np.arange(width)
        inside = (position >= 0) & (position < self.lengths[rows][:, None])
        return np.where(inside, self.values[np.where(inside, position + self.offsets[rows][:, None], 0)], 0)

    def left_padded(self, rows: IntArray, width: int) -> IntArray:
        """Return the last `width` values of each given row, padded on the left with 0: (B, width) int64."""
        return self.windows(rows, self.lengths[rows] - width, width)
