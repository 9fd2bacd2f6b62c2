"""What every backend returns."""

from __future__ import annotations

from typing import NamedTuple

from fuserec.kernels._arrays import BoolArray, DoubleArray, FloatArray, IntArray


class Found(NamedTuple):
    """The best rows of each query, best first.

    Attributes:
        rows: (B, k) int64; -1 beyond the last survivor of the filters.
        scores: (B, k) float32; -inf there.
        magnitudes: (B,) float64: sum of the absolute values of each pooled query before it is normalised. NaN or
            infinity tells of a query that is not finite, 0 of a zero query; the caller judges.
        certified: (B,) bool: the first scan of the codes proved the answer. False where it did not and a wider search
            gave it. None: the scan read the rows themselves, and there was nothing to prove.
        rescored: (B,) int64: how many rows were scored from the rows themselves. None: all.
    """

    rows: IntArray
    scores: FloatArray
    magnitudes: DoubleArray
    certified: BoolArray | None = None
    rescored: IntArray | None = None
