"""Bytes that a search moves to and from device memory, counted from the sizes that the launcher itself chooses.

Every tensor counts each time a kernel reads or writes it, as if no cache kept it from one kernel to the next; within
one kernel a table that many programs read counts once, as they read it together. The number of rows that pass is the
expectation for normal data (`bound_growth`).
"""

from __future__ import annotations

from dataclasses import dataclass

from fuserec.kernels.search.gpu_config import (
    ALIGNMENT,
    PASSING_BYTES,
    Shape,
    choose_config,
    choose_plan,
    expected_passing,
    expected_rescored,
)

_CODE, _FLOAT, _KEY = 1, 4, 8
_ROW_FLOATS = 2 * _FLOAT  # scale and reach


@dataclass(frozen=True)
class Traffic:
    """Bytes of one search.

    Attributes:
        pass_1: The sample, the floors, the scan of the codes and the keys of what passes.
        pass_2: The bounds of what passed, the float rows of what they leave, and the answer.
        floor: What any search over codes that returns exact float scores must move: the codes with their two floats a
            row, the queries, the float rows of the answer, and the answer.
        unfused: A gather of the queries, a float32 matrix product that writes B x N scores, a filter that reads and
            writes them, and a top-k that reads them once.
    """

    pass_1: float
    pass_2: float
    floor: float
    unfused: float

    @property
    def ratio(self) -> float:
        """Bytes moved over the floor."""
        return (self.pass_1 + self.pass_2) / self.floor


def traffic(shape: Shape, arch: int) -> Traffic:
    """Return the bytes of one search of `shape` with int8 codes and float32 rows."""
    config = choose_config(shape, "int8", arch)
    plan = choose_plan(shape, config)
    width = -(-shape.dim // ALIGNMENT) * ALIGNMENT
    batch, rows = shape.batch, shape.rows
    codes = rows * (width * _CODE + _ROW_FLOATS)
    queries, float_row = batch * width * _FLOAT, width * _FLOAT
    answer = batch * shape.k * _KEY
    sample, passed = 0.0, float(rows)
    if plan.tile_stride:
        blocks = rows / config.block_best / plan.tile_stride
        sample = codes / plan.tile_stride + queries + 2 * batch * blocks * _FLOAT
        passed = min(passed, expected_passing(shape, plan.tile_stride))
    pass_1 = sample + 3 * queries + codes  # the queries are read, written, and read again
    scored = expected_rescored(shape)
    # A row scored: its key written, read, replaced, and read for its place; the row itself.
    pass_2 = batch * (passed * PASSING_BYTES + scored * (4 * _KEY + float_row)) + queries + answer
    floor = codes + queries + batch * shape.k * float_row + answer
    scores = batch * rows * _FLOAT
    unfused = 3 * queries + rows * shape.dim * _FLOAT + scores + 2 * scores + scores + answer
    return Traffic(pass_1, pass_2, floor, unfused)
