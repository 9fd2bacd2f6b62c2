"""The interleaved layout is a permutation of the codes, and its reach holds for every row of a group."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.kernels import ItemIndex
from fuserec.kernels.packed import pack, packed_shapes
from fuserec.kernels.quantize import quantize_rows


@pytest.mark.parametrize("dim", [1, 4, 7, 130])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 65, 8192, 8300])
def test_packing_loses_nothing(rows: int, dim: int) -> None:
    embeddings = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    codes = quantize_rows(embeddings)
    packed = pack(codes, embeddings)
    assert {name: getattr(packed, name).shape for name in ("codes", "scale", "residual", "reach")} == packed_shapes(
        rows, dim
    )
    assert packed.nbytes >= rows * (dim + 8)
    back = packed.unpack()
    assert (back.values == codes.values).all()
    assert (back.scale == codes.scale).all()
    assert (back.residual == codes.residual).all()
    row, column = rows - 1, dim - 1
    at = (row // 16, column // 4, row % 16, column % 4)
    assert int(packed.codes[at]) - 128 == codes.values[row, column]


def test_the_reach_is_that_of_the_longest_row_of_a_group() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)
    rows[20] *= 1000
    codes = quantize_rows(rows)
    reach = pack(codes, rows).reach
    coded = codes.scale[:, None].astype(np.float64) * codes.values
    for n in range(40):
        assert reach[n // 16] >= np.linalg.norm(rows[n].astype(np.float64))
        assert reach[n // 16] >= np.linalg.norm(coded[n])
    assert reach[1] > 100 * reach[0]
    assert reach[3] == 0  # of padding only


@pytest.mark.parametrize("dim", [1, 2, 8, 384])
def test_rows_at_the_end_of_float32_are_built_and_found(dim: int) -> None:
    rng = np.random.default_rng(dim)
    largest = np.finfo(np.float32).max * rng.choice([-1.0, 1.0], (50, dim)) * rng.random((50, dim))
    largest[0] = np.finfo(np.float32).max
    embeddings = largest.astype(np.float32)
    index = ItemIndex.build(embeddings, np.arange(50))
    query = np.full((1, dim), 2.0**-20, np.float32)
    expected = np.lexsort((np.arange(50), -(embeddings.astype(np.float64) @ query[0])))[:5]
    assert index.search(query, k=5).ids[0].tolist() == expected.tolist()


def test_the_index_gives_the_codes_row_by_row() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)
    codes = ItemIndex.build(rows).row_codes()
    assert codes is not None
    assert (codes.values == quantize_rows(rows).values).all()
    assert ItemIndex.build(rows, codes="none").row_codes() is None
