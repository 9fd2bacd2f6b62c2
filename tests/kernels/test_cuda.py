"""The launcher of the GPU twin: what it refuses without a device, and real sizes on one.

The behaviour suite in `test_search.py` runs on the device too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

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
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("codes", ["int8", "none"])
@pytest.mark.parametrize("k", [10, 100])
def test_a_million_rows_on_a_device(k: int, codes: str, half: bool) -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1_000_000, 64), np.float32).astype(np.float16 if half else np.float32)
    index = ItemIndex.build(table, codes=codes)  # type: ignore[arg-type]
    query = rng.standard_normal((4, 64), np.float32)
    got = index.search(query, k, backend="cuda")
    assert_same_topk(got, truth(index, query), k)
    assert codes == "none" or (got.rescored <= 2 * k + 64).all()


@pytest.mark.gpu
@needs_device
def test_what_codes_cannot_tell_apart_on_a_device() -> None:
    index = ItemIndex.build(np.ones((200_000, 32), np.float32))
    got = index.search(np.ones((3, 32), np.float32), 50, backend="cuda")
    assert got.ids.tolist() == [list(range(50))] * 3
    assert not got.certified.any()


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("rival", ["torch", "faiss", "cuvs"])
def test_no_slower_than_a_rival_on_a_device(rival: str, batch: int) -> None:
    """End to end from host queries, medians of 20 interleaved runs over 1M x 128 with k = 100."""
    rng = np.random.default_rng(0)
    index = ItemIndex.build(rng.standard_normal((1_000_000, 128), np.float32))
    query = rng.standard_normal((batch, 128), np.float32)
    run_rival = rival_search(rival, index.embeddings)

    def elapsed(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    ours, theirs = [], []
    for _ in range(23):
        ours.append(elapsed(lambda: index.search(query, 100, backend="cuda")))
        theirs.append(elapsed(lambda: run_rival(query, 100)))
    assert np.median(ours[3:]) <= np.median(theirs[3:]), f"{np.median(ours[3:])} s against {np.median(theirs[3:])} s"


def rival_search(name: str, rows: np.ndarray) -> Callable[[np.ndarray, int], object]:
    """Return a search from host queries to host answers by another library; skip where it is not installed."""
    if name == "torch":
        table = torch.tensor(rows, device="cuda")
        return lambda query, k: torch.topk(torch.from_numpy(query).cuda() @ table.T, k)[1].cpu()
    if name == "faiss":
        faiss = pytest.importorskip("faiss", reason="faiss is not installed")
        if not hasattr(faiss, "StandardGpuResources"):
            pytest.skip("this faiss is built for the CPU")
        flat = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), rows.shape[1])
        flat.add(rows)
        return lambda query, k: flat.search(query, k)
    brute = pytest.importorskip("cuvs.neighbors.brute_force", reason="cuvs is not installed")
    built = brute.build(torch.tensor(rows, device="cuda"), metric="inner_product")
    return lambda query, k: brute.search(built, torch.from_numpy(query).cuda(), k)


@pytest.mark.gpu
@needs_device
def test_the_table_is_copied_to_the_device_once() -> None:
    index = ItemIndex.build(np.ones((100, 8), np.float32))
    index.search(np.ones((1, 8), np.float32), 1, backend="cuda")
    held = dict(index._resident)
    index.search(np.ones((1, 8), np.float32), 1, backend="cuda")
    assert [index._resident[device] is table for device, table in held.items()] == [True]
