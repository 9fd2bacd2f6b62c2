"""Queries as the scan of the codes takes them: int8 weights, and the coefficients of the bound on every score.

All is in units of the query's own scale b, in which a score is near sum(w c) * scale. With dq = ||q - b w|| / b,
n = ||q|| / b and g the relative error of a float32 sum (`quantize.py`), the score s of a row has

    |s / b - sum(w c) * scale|  <=  residual * n  +  reach * (dq + g n)  +  D 2^-150 / b

The scan works that out in float32. Its own roundings are at most 5 * 2^-24 of |sum(w c) * scale| <= (n + dq) * reach
and of the bound itself, hence the 2^-21 and 2^-20 below.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from fuserec.kernels._arrays import DoubleArray, FloatArray
from fuserec.kernels.packed import GROUP, OFFSET, QUAD
from fuserec.kernels.quantize import LEVELS
from fuserec.kernels.search._numba_emit import QUADS_A_LINE, on_cache_lines
from fuserec.kernels.search._numba_jit import jit
from fuserec.kernels.search._numba_score import Bags, pool_query
from fuserec.kernels.search._numba_tile import WEIGHT_DTYPE

_WEIGHT_BYTES: Final = WEIGHT_DTYPE.itemsize


class Asked(NamedTuple):
    """Pooled queries and their codes; C is the batch, padded to whole tiles with queries of zeros.

    Attributes:
        queries: (B, D) float32.
        weights: (C, W) int8 or int16, W being 4 J rounded up to a whole number of cache lines of int8.
        biases: (C, 16) int32, -128 * sum(w), repeated.
        units: (B,) float64: b.
        slopes: (C, 2) float32: what multiplies residual and reach.
        margins: (B,) float32: the rest of the bound.
    """

    queries: FloatArray
    weights: npt.NDArray[np.int16]
    biases: npt.NDArray[np.int32]
    units: DoubleArray
    slopes: FloatArray
    margins: FloatArray


@jit()
def allocate_asked(batch: int, dim: int, quads: int, tile: int) -> Asked:
    """Return room for `batch` queries, in tiles of `tile` queries."""
    padded, width = -(-batch // tile) * tile, -(-quads // QUADS_A_LINE) * QUADS_A_LINE * QUAD
    weights = on_cache_lines(padded * width * _WEIGHT_BYTES).view(WEIGHT_DTYPE).reshape((padded, width))
    biases = on_cache_lines(padded * GROUP * 4).view(np.int32).reshape((padded, GROUP))
    weights[:], biases[:] = 0, 0
    return Asked(
        np.empty((batch, dim), np.float32), weights, biases, np.empty(batch, np.float64),
        np.zeros((padded, 2), np.float32), np.empty(batch, np.float32),
    )  # fmt: skip


@jit()
def ask(bags: Bags, b: int, q: int, normalize: bool, asked: Asked) -> float:
    """Pool query `b` of the batch, write it as query `q` of the part, and return the sum of its absolute values."""
    query = asked.queries[q]
    dim = query.size
    magnitude = pool_query(bags, b, normalize, query)
    peak = 0.0
    for d in range(dim):
        peak = max(peak, abs(np.float64(query[d])))
    asked.units[q] = peak / LEVELS
    asked.margins[q] = 0
    # A query of zeros scores 0 on every row, exactly. One that is not finite is refused later, by its magnitude.
    if peak == 0 or not np.isfinite(magnitude) or not np.isfinite(peak):
        return magnitude
    unit = peak / LEVELS
    norm, error, total = 0.0, 0.0, 0
    for d in range(dim):
        value = query[d] / unit
        weight = np.rint(value)
        norm += value * value
        error += (value - weight) * (value - weight)
        total += np.int64(weight)
        asked.weights[q, d] = np.int64(weight)
    norm, error = np.sqrt(norm), np.sqrt(error)
    rounding = dim * 2.0**-24 / (1 - dim * 2.0**-24)
    asked.biases[q] = -OFFSET * total
    asked.slopes[q, 0] = norm * (1 + 2.0**-20)
    asked.slopes[q, 1] = (error + (rounding + 2.0**-21) * (norm + error)) * (1 + 2.0**-20)
    asked.margins[q] = (dim * 2.0**-150 / unit + 2.0**-146) * (1 + 2.0**-20)
    return magnitude
