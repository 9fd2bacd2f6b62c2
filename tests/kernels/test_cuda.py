"""The launcher of the GPU twin: what it refuses without a device, and real sizes on one.

The behaviour suite in `test_search.py` runs on the device too.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fuserec.kernels import Bag, ItemIndex, Lookup
from fuserec.kernels.search import op

from .checks import assert_same_topk, truth

needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_cuda_is_refused_and_auto_is_cpu() -> None:
    index = ItemIndex.build(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="backend 'cuda': got no CUDA device"):
        index.search(np.ones((1, 2), np.float32), 1, backend="cuda")
    assert op.resolve("auto") == "cpu"


def test_compiled_kernels_cannot_be_interpreted() -> None:
    code = """
import numpy as np
from fuserec.kernels import ItemIndex
try:
    ItemIndex.build(np.ones((2, 2), np.float32)).search(np.ones((1, 2), np.float32), 1, backend="interpret")
except ValueError as error:
    assert "set TRITON_INTERPRET=1 before triton is imported" in str(error)
else:
    raise SystemExit("expected a ValueError")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("kind", ["dense", "lookup", "bag"])
def test_real_sizes_on_a_device(kind: str, batch: int, metric: str) -> None:
    rng = np.random.default_rng(0)
    index = ItemIndex.build(rng.standard_normal((50_021, 100)).astype(np.float32), metric=metric)
    table = rng.standard_normal((1000, 100)).astype(np.float32)
    query: object = table[:batch]
    if kind == "lookup":
        query = Lookup(table, rng.integers(0, 1000, batch))
    if kind == "bag":
        query = Bag(table, rng.integers(0, 1000, 20 * batch), 20 * np.arange(batch + 1))
    exclude = [rng.integers(0, 50_021, 500) for _ in range(batch)]
    kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
    got = index.search(query, 100, exclude=exclude, backend="cuda")
    assert_same_topk(got, truth(index, query), 100, kept)


@pytest.mark.gpu
@needs_device
def test_a_table_on_the_device_is_read_there() -> None:
    rng = np.random.default_rng(0)
    index = ItemIndex.build(rng.standard_normal((500, 20)).astype(np.float32))
    table = rng.standard_normal((30, 20)).astype(np.float32)
    got = index.search(Lookup(torch.from_numpy(table).cuda(), [3, 29]), 5)
    assert_same_topk(got, truth(index, table[[3, 29]]), 5)


@pytest.mark.gpu
@needs_device
def test_the_table_is_copied_to_the_device_once() -> None:
    index = ItemIndex.build(np.ones((100, 8), np.float32))
    index.search(np.ones((1, 8), np.float32), 1, backend="cuda")
    held = dict(index._resident)
    index.search(np.ones((1, 8), np.float32), 1, backend="cuda")
    assert [index._resident[device] is table for device, table in held.items()] == [True]
