"""Codes as a CPU reads them: rows in groups of 16, interleaved so that one vector holds the same columns of all 16.

    codes[g, j, r, i] = values[16 g + r, 4 j + i] + 128        uint8, 64 bytes a (g, j): one AVX-512 register

An instruction that multiplies four bytes of each 32-bit lane and adds them (VPDPBUSD) then works on 16 rows at once,
and no sum ever runs across a register. It wants one factor unsigned, hence the 128; it comes off again as a constant
of the query, 128 * sum(w).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fuserec.kernels._arrays import FloatArray, aligned_empty
from fuserec.kernels.quantize import Codes, upper_norms

GROUP: Final = 16  # rows
QUAD: Final = 4  # columns
ROW_MULTIPLE: Final = 64  # rows are padded to this: the tallest tile of the scan
OFFSET: Final = 128

_BLOCK_ROWS = 1 << 13  # rows packed at a time, a multiple of ROW_MULTIPLE

ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PackedCodes:
    """Interleaved codes of N rows, padded with rows of zeros.

    Attributes:
        codes: (G, J, 16, 4) uint8 for G groups and J quads of columns; see above.
        scale: (G, 16) float32.
        residual: (G, 16) float32; as in `quantize.Codes`, like the scale.
        reach: (G,) float32, at or above ||e|| and ||a c|| of every row e ~ a c of the group.
        rows: N.
        dim: D.
    """

    codes: ByteArray
    scale: FloatArray
    residual: FloatArray
    reach: FloatArray
    rows: int
    dim: int

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.codes.nbytes + self.scale.nbytes + self.residual.nbytes + self.reach.nbytes

    def unpack(self) -> Codes:
        """Return the codes row by row, as a new copy."""
        values = np.empty((self.rows, self.dim), np.int8)
        for start in range(0, self.rows, _BLOCK_ROWS):
            block = self.codes[start // GROUP : (start + _BLOCK_ROWS) // GROUP]
            by_row = block.transpose(0, 2, 1, 3).reshape(len(block) * GROUP, -1) ^ np.uint8(OFFSET)
            values[start : start + _BLOCK_ROWS] = by_row.view(np.int8)[: self.rows - start, : self.dim]
        return Codes(values, self.scale.reshape(-1)[: self.rows].copy(), self.residual.reshape(-1)[: self.rows].copy())


def packed_shapes(rows: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of `PackedCodes`, by name."""
    groups = -(-rows // ROW_MULTIPLE) * (ROW_MULTIPLE // GROUP)
    quads = -(-dim // QUAD)
    return {"codes": (groups, quads, GROUP, QUAD), "scale": (groups, GROUP), "residual": (groups, GROUP),
            "reach": (groups,)}  # fmt: skip


def pack(codes: Codes, embeddings: FloatArray) -> PackedCodes:
    """Interleave `codes`, the codes of `embeddings` (N, D) float32."""
    rows, dim = codes.values.shape
    shapes = packed_shapes(rows, dim)
    packed = PackedCodes(
        codes=aligned_empty(shapes["codes"], np.uint8),
        scale=_padded(codes.scale, shapes["scale"]),
        residual=_padded(codes.residual, shapes["residual"]),
        reach=np.empty(shapes["reach"], np.float32),
        rows=rows,
        dim=dim,
    )
    quads = shapes["codes"][1]
    for start in range(0, rows, _BLOCK_ROWS):
        block = slice(start // GROUP, (start + _BLOCK_ROWS) // GROUP)
        groups = len(packed.codes[block])
        padded = np.zeros((groups * GROUP, quads * QUAD), np.int8)
        values = codes.values[start : start + _BLOCK_ROWS]
        padded[: len(values), :dim] = values
        offset = padded.view(np.uint8) ^ np.uint8(OFFSET)  # on two's complement, flipping the top bit adds 128
        packed.codes[block] = offset.reshape(groups, GROUP, quads, QUAD).transpose(0, 2, 1, 3)
        # ||a c|| <= ||e|| + r
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite, which bounds it, too
            reach = upper_norms(embeddings[start : start + _BLOCK_ROWS]) + codes.residual[start : start + _BLOCK_ROWS]
            reach = np.nextafter(reach, np.float32(np.inf))
        packed.reach[block] = _padded(reach, (groups, GROUP)).max(axis=1)
    return packed


def _padded(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    padded: FloatArray = aligned_empty(shape, np.float32)
    padded[:] = 0
    padded.reshape(-1)[: len(values)] = values
    return padded
