"""Item rows as int8 codes, and how far a score read from the codes can be from the score of the row itself.

    e  ~  a * c        a float32 scale and D int8 codes for each row; the residual r >= ||e - a * c|| is proven
    q  ~  b * w        a float64 scale and D int8 codes for each query; ||q - b * w|| is kept

Scoring with codes reads a quarter of the bytes. With a bound on what that loses, a scan can discard rows for certain
and leave the few others to be scored from the rows themselves.

The bound. Write q.e - (b w).(a c) = q.(e - a c) + (q - b w).(a c); by Cauchy-Schwarz

    |q.e - (b w).(a c)|  <=  ||q|| r  +  ||q - b w|| ||a c||

The score to be bounded is not q.e but its float32 sum s, in any order, with or without fused multiply-adds: with
u = 2^-24 and g = D u / (1 - D u), |s - q.e| <= g sum|q_i e_i| + D 2^-150 <= g ||q|| ||e|| + D 2^-150, where the last
term is for products that underflow (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
With a reach R >= max(||e||, ||a c||):

    |s - (b w).(a c)|  <=  ||q|| r  +  (||q - b w|| + g ||q||) R  +  D 2^-150                          (`score_error`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fuserec.kernels._arrays import DoubleArray, FloatArray

CodeArray = npt.NDArray[np.int8]

LEVELS: Final = 127  # codes are -127 to 127: a symmetric grid, on which negating a row negates its codes
# Rows whose largest entry lies outside are not coded. Inside, no product of a scale, a residual and an int32 sum of
# code products leaves the normal range of float32, so kernels may form them without a thought.
SMALLEST_CODED: Final = 2.0**-100
LARGEST_CODED: Final = 2.0**100
# An int32 sum of D products of codes must not overflow, one of uint8 by int8 included: 255 * 127 * D < 2^31.
MAX_CODED_DIM: Final = 2**16

_BLOCK_BYTES = 1 << 22  # float64 scratch of a block of rows: fits in cache


@dataclass(frozen=True, eq=False)
class Codes:
    """Rows e ~ scale * values, with a proven bound on what the codes leave out.

    Attributes:
        values: (N, D) int8 in -127 to 127, row-major.
        scale: (N,) float32, 0 or above. 0 for a row that is not coded: one of zeros, or one whose largest absolute
            value is outside `SMALLEST_CODED` to `LARGEST_CODED`. Its values are 0, its residual is its norm, so that
            the bound still holds and only says that such a row must be looked at.
        residual: (N,) float32 with residual >= ||e - scale * values||; infinite if that is beyond float32.
    """

    values: CodeArray
    scale: FloatArray
    residual: FloatArray

    def __post_init__(self) -> None:
        rows = len(self.values)
        if self.values.ndim != 2 or self.scale.shape != (rows,) or self.residual.shape != (rows,):
            raise ValueError(
                f"codes: got values {self.values.shape}, scale {self.scale.shape} and residual {self.residual.shape}, "
                "expected (N, D), (N,) and (N,)"
            )


def quantize_rows(embeddings: FloatArray) -> Codes:
    """Return the codes of finite rows.

    Args:
        embeddings: (N, D) float32, finite, with D at most `MAX_CODED_DIM`.

    Raises:
        ValueError: D is larger.
    """
    rows, dim = embeddings.shape
    if dim > MAX_CODED_DIM:
        raise ValueError(f"embeddings: got {dim} columns, expected at most {MAX_CODED_DIM} to have int8 codes")
    codes = Codes(np.empty((rows, dim), np.int8), np.empty(rows, np.float32), np.empty(rows, np.float32))
    step = max(1, _BLOCK_BYTES // (8 * dim))
    for start in range(0, rows, step):
        block = slice(start, start + step)
        wide = embeddings[block].astype(np.float64)
        peak = np.abs(wide).max(axis=1)
        coded = (peak >= SMALLEST_CODED) & (peak <= LARGEST_CODED)
        scale = np.where(coded, peak / LEVELS, 0).astype(np.float32)
        # The scale is off by 2^-24 of itself at most, so no quotient reaches 127.5 and no code needs to be clipped.
        values = np.rint(wide / np.where(coded, scale, np.inf)[:, None])
        codes.values[block] = values
        codes.scale[block] = scale
        wide -= values * scale[:, None].astype(np.float64)  # the product has 31 bits: exact
        codes.residual[block] = upper_norms(wide)
    return codes


def upper_norms(rows: npt.NDArray[Any]) -> FloatArray:
    """Return (N,) float32 upper bounds on the Euclidean norms of (N, D) float32 or float64 rows.

    The entries are float32 numbers or differences of such, so no square under- or overflows float64. A sum of D
    squares, its root and the differences err by less than D + 4 roundings; the result is scaled up by that, then
    rounded up to float32.
    """
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return round_up(norms * (1 + (rows.shape[1] + 4) * 2.0**-52))


def round_up(values: DoubleArray) -> FloatArray:
    """Return the least float32 at or above each float64, infinity beyond the largest."""
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
        return np.where(nearest < values, np.nextafter(nearest, np.float32(np.inf)), nearest)


@dataclass(frozen=True, eq=False)
class QueryCodes:
    """Queries q ~ scale * values.

    Attributes:
        values: (B, D) int8 in -127 to 127.
        scale: (B,) float64; 0 for a query of zeros.
        norm: (B,) float64 with norm >= ||q||.
        error: (B,) float64 with error >= ||q - scale * values||.
    """

    values: CodeArray
    scale: DoubleArray
    norm: DoubleArray
    error: DoubleArray


def quantize_queries(queries: FloatArray) -> QueryCodes:
    """Return the codes of (B, D) finite float32 queries."""
    wide = queries.astype(np.float64)
    scale = np.abs(wide).max(axis=1, initial=0) / LEVELS
    values = np.rint(wide / np.where(scale > 0, scale, 1)[:, None])
    # scale * values has 53 + 7 bits and is rounded, by 2^-53 of |q| at most; so is the difference.
    norm = np.sqrt((wide**2).sum(axis=1)) * (1 + (wide.shape[1] + 4) * 2.0**-52)
    error = np.sqrt(((wide - scale[:, None] * values) ** 2).sum(axis=1)) * (1 + (wide.shape[1] + 4) * 2.0**-52)
    return QueryCodes(values.astype(np.int8), scale, norm, error + norm * 2.0**-51)


def summation_error(dim: int) -> float:
    """Return g: a float32 sum of `dim` products errs by at most g * sum|q_i e_i|, underflow aside."""
    rounding = dim * 2.0**-24
    return rounding / (1 - rounding)


def score_error(
    query_norm: DoubleArray, query_error: DoubleArray, residual: FloatArray, reach: FloatArray, dim: int
) -> DoubleArray:
    """Return a bound (B, N) on |s - (b w).(a c)| for the float32 score s; the formula is in the module's docstring.

    Args:
        query_norm: (B,) upper bounds on ||q||.
        query_error: (B,) upper bounds on ||q - b w||.
        residual: (N,) upper bounds on ||e - a c||.
        reach: (N,) or (1,) upper bounds on ||e|| and on ||a c||.
        dim: D.
    """
    per_reach = query_error + summation_error(dim) * query_norm
    with np.errstate(invalid="ignore"):
        bound = np.multiply.outer(query_norm, residual.astype(np.float64))
        bound = bound + np.multiply.outer(per_reach, reach.astype(np.float64)) + dim * 2.0**-150
    # Six float64 roundings of positive terms; 0 * inf is a zero query, of which nothing is known to be lost.
    return np.where(np.isnan(bound), 0.0, bound * (1 + 2.0**-48))
