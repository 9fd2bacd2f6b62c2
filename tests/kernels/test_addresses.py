"""Tables and buffers beyond 2^31 elements: sparse files stand for them, of which a search reads a few pages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fuserec.kernels.search import _kernel_finish, _kernel_sift
from fuserec.kernels.search.keys import unpack

from .conftest import skip_unless_available

FAR = 2**31 + 2**20  # elements


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    skip_unless_available("interpret")


def sparse(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of zeros, most of which are nowhere."""
    size = math.prod(shape)
    with path.open("wb") as file:
        file.truncate(size * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)


def test_a_row_beyond_2_31_elements_is_scored(tmp_path: Path) -> None:
    rows = FAR // 16
    items = sparse(tmp_path / "items", (rows, 16), torch.float16)
    items[rows - 1] = 2
    key = 0xFFFFFFFF - (rows - 1)
    picked = torch.tensor([[key, -2]])
    _kernel_finish.rescore_kernel[(1,)](
        picked, torch.tensor([1, 1]), torch.tensor([1], dtype=torch.int32), items, torch.ones(1, 16),
        2, 1, 16, 16, BLOCK_C=16, BLOCK_D=16,
    )  # fmt: skip
    found, scores = unpack(picked.numpy())
    assert (found[0, 0], scores[0, 0]) == (rows - 1, 32.0)


def test_keys_beyond_2_31_elements_are_placed(tmp_path: Path) -> None:
    capacity = FAR // 2
    picked = sparse(tmp_path / "keys", (3, capacity), torch.int64)
    picked[2, 0] = (0x3F800000 << 32) | (0xFFFFFFFF - 1)  # row 1 with score 1
    ids, scores = torch.full((3, 2), -2), torch.full((3, 2), torch.nan)
    flags, rescored = torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    counts = torch.tensor([0, 0, 1], dtype=torch.int32)
    _kernel_finish.place_kernel[(3,)](
        ids, scores, flags, rescored, torch.tensor([3, 1]), picked, counts, counts, torch.zeros(3),
        torch.ones(3, dtype=torch.float64), torch.tensor([9.0, 9.0, 0.0], dtype=torch.float64),
        torch.tensor([70, 71]), capacity, 1, 2, BLOCK_C=16,
    )  # fmt: skip
    assert ids.tolist() == [[-1, -1], [-1, -1], [71, -1]]
    assert scores[2].tolist() == [1.0, -np.inf]


def test_codes_beyond_2_31_elements_are_scanned(tmp_path: Path) -> None:
    rows, tile = FAR // 16, 64
    last = rows // tile - 1
    codes = sparse(tmp_path / "codes", (rows, 16), torch.int8)
    scales = sparse(tmp_path / "scales", (rows,), torch.float32)
    codes[last * tile + 5], scales[last * tile + 5] = 1, 1.0
    orders, nothing = torch.full((1, 4), 77, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    _kernel_sift.sift_kernel[(2,)](
        orders, nothing, nothing.int(), torch.tensor([1, 1]), torch.ones(1, 16), torch.ones(1), torch.ones(1),
        torch.zeros(1), codes, scales, scales, nothing, nothing, nothing, nothing, nothing, nothing.byte(),
        1, rows, 0, 0, 2, 1, last, 127, 1, 16, 0,
        EXCLUDE=False, SEEN=False, ALLOW=False, SAMPLE=True, MMA=False, WIDE=False,
        BLOCK_Q=1, BLOCK_N=tile, BLOCK_D=16, BLOCK_BEST=32, NUM_STAGES=1,
    )  # fmt: skip
    found = orders.view(torch.float32).tolist()
    assert found == [[0.0, 0.0, pytest.approx(15.0), 0.0]], "16 products of 1, less a reach of 1"
