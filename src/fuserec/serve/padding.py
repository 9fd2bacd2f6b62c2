"""Rows of unequal length, padded so that what a row is padded to depends on that row alone.

A network sums over the positions of a row in an order that depends on how many there are, padding included, and
float32 sums in another order differ in the last bit. Were rows padded to the longest of their batch, the answer to one
caller would depend on who else asked at that moment. So each goes into the batch of the smallest width that it fits:
16, 32, 64, ... A mix of lengths needs a few runs in place of one, which together read less padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHORTEST: Final = 16

Ints = NDArray[np.int64]


def batches(lengths: Sequence[int], longest: int, limit: int) -> Iterator[tuple[int, Ints]]:
    """Yield the width of each batch and which rows are in it, at most `limit`.

    Args:
        lengths: of B rows; those beyond `longest` are of rows that will be cut to it.
        longest: the largest width.
        limit: rows in a batch.
    """
    rows_of: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        power = 1 << (length - 1).bit_length()  # the smallest that is not below the length
        rows_of.setdefault(min(max(power, SHORTEST), longest), []).append(row)
    for width, rows in sorted(rows_of.items()):
        for at in range(0, len(rows), limit):
            yield width, np.array(rows[at : at + limit], dtype=np.int64)
