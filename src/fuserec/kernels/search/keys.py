"""Packed keys: the order "score descending, row ascending" as one int64 comparison.

    key = (sortable(score) << 32) | (0xFFFFFFFF - row)

`sortable` flips the magnitude bits of negative floats, so that int32 order is float order; -0.0 becomes 0.0 first.
Rows ascend with item ids, hence the larger key is the better item. `EMPTY` is below the key of every real score.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from fuserec.kernels._arrays import FloatArray, IntArray

EMPTY: Final = -(2**63)
MAX_ROWS: Final = 2**32


def unpack(keys: IntArray) -> tuple[IntArray, FloatArray]:
    """Return the rows (int64) and scores (float32) of `keys`; row -1 and score -inf where a key is `EMPTY`."""
    empty = keys == EMPTY
    rows = np.int64(MAX_ROWS - 1) - (keys & (MAX_ROWS - 1))
    bits = (keys >> 32).astype(np.int32)
    bits = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return np.where(empty, -1, rows), np.where(empty, np.float32(-np.inf), bits.view(np.float32))
