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

from fuserec.errors import DeviceMemoryError
from fuserec.kernels import Bag, ItemIndex, KnownQueries, Lookup
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


# --- what only a driver does: graphs, streams, locked memory, forks ---


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("k", [10, 100, 1000, 2000])
def test_graphs_are_replayed_and_answer_for_other_queries(k: int) -> None:
    index = ItemIndex.build(normals(100_003, 64))
    on_device = index.to("cuda")
    for at in range(5):
        query = normals(3 + at % 2, 64, seed=at)
        exclude = [np.arange(b, 300, 3) for b in range(len(query))]
        kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
        got = index.search(query, k, exclude=exclude, backend="cuda")
        assert_same_topk(got._replace(certified=np.ones(len(query), np.bool_)), truth(index, query), k, kept)
    graphs = [kept.graph for kept in on_device._searcher._kept.values()]
    assert len(graphs) == (k <= 1024) and None not in graphs


@pytest.mark.gpu
@needs_device
@pytest.mark.parametrize("rows", ["device", "host"])
@pytest.mark.parametrize("half", [False, True])
def test_rows_on_the_host_and_on_the_device_answer_alike(rows: str, half: bool) -> None:
    index = ItemIndex.build(normals(50_021, 96).astype(np.float16 if half else np.float32))
    want = index.search(normals(17, 96, seed=1), 100, backend="cpu")
    index.to("cuda", rows=rows)  # type: ignore[arg-type]
    got = index.search(normals(17, 96, seed=1), 100, backend="cuda")
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-4, atol=1e-4)
    assert_same_topk(got, truth(index, normals(17, 96, seed=1)), 100)


@pytest.mark.gpu
@needs_device
def test_tensors_on_a_stream_of_the_caller() -> None:
    index = ItemIndex.build(normals(50_021, 64))
    on_device = index.to("cuda")
    query = normals(8, 64, seed=1)
    want = index.search(query, 20, exclude=[[b] for b in range(8)], backend="cpu")
    streams = [torch.cuda.Stream() for _ in range(3)]
    for at in range(9):
        with torch.cuda.stream(streams[at % 3]):
            mine = torch.from_numpy(query).cuda(non_blocking=True)
            torch.cuda._sleep(1_000_000)  # whoever does not wait in line reads what is not there yet
            found = on_device.search(mine * 1.0, 20, exclude=torch.arange(8, device="cuda")[:, None])
            found = on_device.repair(found)
            assert found.ids.cpu().tolist() == want.ids.tolist()


@pytest.mark.gpu
@needs_device
def test_a_search_on_the_device_does_not_wait() -> None:
    on_device = ItemIndex.build(normals(50_021, 64)).to("cuda")
    query = torch.from_numpy(normals(4, 64, seed=1)).cuda()
    for _ in range(3):
        on_device.search(query, 20)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device.search(query, 20, exclude=torch.ones((4, 3), dtype=torch.int64, device="cuda"))
        on_device.search(query, 20)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@needs_device
def test_known_queries_on_a_device() -> None:
    index = ItemIndex.build(normals(20_011, 64))
    vectors = normals(300, 64, seed=1)
    best = index.search(vectors, 5, backend="cpu").ids
    excluded = index.excluded_rows(best.reshape(-1), np.arange(0, 1501, 5))
    known = KnownQueries(index, vectors, excluded, backend="cuda")
    for at in range(3):
        rows = np.arange(at, 300, 7)
        got = known.search(rows, rows, 10)
        want = index.search(vectors[rows], 10, exclude=excluded.take(rows.tolist()), backend="cpu")
        assert got.ids.tolist() == want.ids.tolist()
    vectors[0] = -vectors[0]
    known.refresh(np.zeros(1, np.int64))
    got = known.search(np.array([1]), np.array([0]), 10)
    assert got.ids.tolist() == index.search(vectors[:1], 10, exclude=excluded.take([1]), backend="cpu").ids.tolist()


@pytest.mark.gpu
@needs_device
def test_a_table_that_does_not_fit_is_refused_with_what_would() -> None:
    index = ItemIndex.build(normals(10_000, 64))
    free, _ = torch.cuda.mem_get_info()
    room = torch.empty(free - (64 << 20) - torch.cuda.memory_reserved(), dtype=torch.uint8, device="cuda")
    torch.cuda.empty_cache()
    big = ItemIndex.build(np.resize(normals(1000, 64), (1_000_000, 64)))
    with pytest.raises(DeviceMemoryError, match='rows="host"') as raised:
        big.to("cuda")
    assert 0 < raised.value.fitting_rows < 1_000_000
    del room
    assert index.search(normals(1, 64), 3, backend="cuda").certified.all()


@pytest.mark.gpu
@needs_device
def test_a_fork_is_refused_on_a_device() -> None:
    code = """
import os
import numpy as np
from fuserec.errors import DeviceError
from fuserec.kernels import ItemIndex
index = ItemIndex.build(np.eye(64, dtype=np.float32))
index.search(np.ones((1, 64), np.float32), 1, backend="cuda")
child = os.fork()
if child == 0:
    try:
        index.search(np.ones((1, 64), np.float32), 1, backend="cuda")
    except DeviceError:
        os._exit(0)
    os._exit(1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.gpu
@needs_device
def test_two_processes_share_a_device() -> None:
    code = """
import numpy as np
from fuserec.kernels import ItemIndex
rows = np.random.default_rng(0).standard_normal((100_000, 64), np.float32)
index = ItemIndex.build(rows)
for at in range(50):
    query = rows[at : at + 4]
    got, want = index.search(query, 10, backend="cuda"), index.search(query, 10, backend="cpu")
    assert got.ids.tolist() == want.ids.tolist()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
