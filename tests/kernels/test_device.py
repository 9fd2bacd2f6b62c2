"""The index on a device: tensors in and out, buckets and their padding, memory, faults. Interpreted, so on the CPU.

What only a driver can do (graphs, locked memory, a lost device) is faked at its edge, and runs for real in
`test_cuda.py` where there is a device.
"""

from __future__ import annotations

import gc
import os
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fuserec.errors import DeviceError, DeviceLost, DeviceMemoryError, DeviceUnavailable
from fuserec.kernels import Bag, ItemIndex, KnownQueries, Lookup
from fuserec.kernels.device import DeviceIndex
from fuserec.kernels.search import _cuda, _cuda_body, _cuda_table, gpu_bucket
from fuserec.kernels.search.gpu_bucket import Bucket, GpuSettings, choose_bucket
from fuserec.kernels.search.gpu_config import SiftPlan, max_rows, state_bytes

from .checks import assert_identical_topk, truth
from .conftest import skip_unless_available

Floats = npt.NDArray[np.float32]
ROWS, DIM, K = 150, 16, 5


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    skip_unless_available("interpret")


def integers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def built(rows: int = ROWS, dim: int = DIM, **given: Any) -> ItemIndex:
    ids = np.random.default_rng(1).permutation(3 * rows)[:rows] + 1000
    return ItemIndex.build(integers(rows, dim), ids, **given)


def few_pass(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Let few rows through, as a table of millions would."""
    plan = replace(SiftPlan(tile_stride=1, rank=1, capacity=256), **changes)
    monkeypatch.setattr(_cuda_body, "choose_plan", lambda shape, config: plan)


def as_topk(found: Any) -> Any:
    return types.SimpleNamespace(ids=found.ids.numpy(), scores=found.scores.numpy())


# --- tensors in, tensors out ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("codes", ["int8", "none"])
def test_tensors_in_tensors_out(codes: str, dtype: torch.dtype) -> None:
    index = built(codes=codes)
    query = integers(3, DIM, seed=1)
    found = index.to("interpret").search(torch.from_numpy(query).to(dtype), K)
    assert_identical_topk(as_topk(found), truth(index, query), K)
    assert found.certified.all() and found.sound.all()
    assert (found.ids.dtype, found.scores.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("form", ["padded", "csr", "rows", "empty"])
def test_excluded_items_on_the_device(form: str) -> None:
    index = built()
    query = integers(3, DIM, seed=1)
    best = index.search(query, 20, backend="reference").ids
    lists = [best[0, ::-1], np.array([], np.int64), np.array([best[2, 3], 5, best[2, 0], best[2, 3], 10**9])]
    if form == "empty":
        lists = [np.array([], np.int64)] * 3
    offsets = np.cumsum([0, *map(len, lists)])
    padded = np.full((3, max(map(len, lists))), -1)
    for line, ids in zip(padded, lists, strict=True):
        line[: len(ids)] = ids
    forms = {
        "padded": torch.from_numpy(padded),
        "empty": torch.from_numpy(padded),
        "csr": (torch.from_numpy(np.concatenate(lists)), torch.from_numpy(offsets)),
        "rows": index.excluded_rows(np.concatenate(lists), offsets),
    }
    allow = torch.from_numpy(np.arange(ROWS) % 3 > 0)
    found = index.to("interpret").search(torch.from_numpy(query), K, exclude=forms[form], allow=allow)
    kept = allow.numpy() & np.stack([~np.isin(index.ids, ids) for ids in lists])
    assert_identical_topk(as_topk(found), truth(index, query), K, kept)


def test_a_mask_for_each_query_and_more_items_than_there_are() -> None:
    index = built()
    query = integers(3, DIM, seed=1)
    allow = np.random.default_rng(2).random((3, ROWS)) < 0.3
    allow[1] = False
    found = index.to("interpret").search(torch.from_numpy(query), ROWS + 7, allow=torch.from_numpy(allow))
    assert_identical_topk(as_topk(found), truth(index, query), ROWS + 7, allow)


def test_a_query_without_sound_scores_is_flagged_and_repair_refuses_it() -> None:
    on_device = built(metric="cosine").to("interpret")
    query = torch.from_numpy(integers(4, DIM, seed=1))
    query[1] = 0
    query[2, 3] = torch.nan
    with np.errstate(invalid="ignore"):
        found = on_device.search(query, K)
    assert found.sound.tolist() == [True, False, False, True]
    assert (found.ids[1:3] == -1).all() and found.scores[1:3].isnan().all()
    assert (found.ids[[0, 3]] >= 0).all()
    with pytest.raises(ValueError, match=r"query 2: got .* expected finite values"):
        on_device.repair(found)


@pytest.mark.parametrize("filtered", [False, True])
def test_repair_finds_what_was_not_proven(monkeypatch: pytest.MonkeyPatch, filtered: bool) -> None:
    few_pass(monkeypatch)  # the floor is the best score of a block, so fewer than K rows reach it
    index = built()
    query = integers(3, DIM, seed=1)
    best = index.search(query, 3, backend="reference").ids
    exclude, allow = (torch.from_numpy(best), torch.ones((3, ROWS), dtype=torch.bool)) if filtered else (None, None)
    on_device = index.to("interpret")
    found = on_device.search(torch.from_numpy(query), K, exclude=exclude, allow=allow)
    assert not found.certified.all()
    repaired = on_device.repair(found)
    kept = np.stack([~np.isin(index.ids, ids) for ids in best]) if filtered else None
    assert_identical_topk(as_topk(repaired), truth(index, query), K, kept)
    assert repaired.certified.tolist() == found.certified.tolist(), "what the first pass proved stays said"
    assert (repaired.rescored[~found.certified] == ROWS).all()


def test_what_is_proven_needs_no_repair() -> None:
    on_device = built().to("interpret")
    found = on_device.search(torch.ones(1, DIM), K)
    assert on_device.repair(found) is found


QUERY = torch.ones(2, DIM)


@pytest.mark.parametrize(
    ("query", "k", "given", "message"),
    [
        (QUERY, 0, {}, "invalid k=0: must be"),
        (QUERY, True, {}, "invalid k=True"),
        (QUERY[:, 1:], 1, {}, r"invalid query=torch.float32 of \(2, 15\) on cpu: must be a tensor of 16 columns"),
        (QUERY.numpy(), 1, {}, "invalid query=ndarray"),
        (QUERY.double(), 1, {}, "must be float32, float16 or bfloat16"),
        (QUERY[:0], 1, {}, "of at least 1 row"),
        (QUERY.to("meta"), 1, {}, "on meta: must be on cpu"),
        (QUERY, 1, {"allow": torch.ones(3, dtype=torch.bool)}, r"must be a bool tensor of shape \(150,\)"),
        (QUERY, 1, {"exclude": torch.ones(3, 4, dtype=torch.int64)}, "must be a tensor of 2 lists"),
        (QUERY, 1, {"exclude": torch.ones(2, 4)}, "must be int64 item ids"),
        (QUERY, 1, {"exclude": (torch.ones(3), torch.ones(2, dtype=torch.int64))}, "must be ids and 3 int64 offsets"),
        (QUERY, 1, {"exclude": [[1], [2]]}, "invalid exclude=list"),
    ],
)
def test_what_does_not_fit_is_refused(query: Any, k: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built().to("interpret").search(query, k, **given)


# --- known queries ---


@pytest.mark.parametrize("k", [3, 200])
def test_known_queries_lie_on_the_device(k: int) -> None:
    index = built()
    vectors = integers(20, DIM, seed=1)
    best = index.search(vectors, 4, backend="reference").ids
    excluded = index.excluded_rows(best[:, :3].reshape(-1), np.arange(0, 61, 3))
    known = KnownQueries(index, vectors, excluded, backend="interpret")
    lists, rows = np.array([3, 19, 0]), np.array([3, 4, 3])
    also = [best[3, 3:], np.array([7, -1]), np.array([], np.int64)]
    for more in (None, also):
        got = known.search(lists, rows, k, more)
        want = index.search(vectors[rows], k, exclude=known.excluded(lists, more), backend="reference")
        assert got.ids.tolist() == want.ids.tolist()
        assert got.scores.tolist() == want.scores.tolist()


def test_known_queries_that_are_not_proven_are_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    few_pass(monkeypatch)
    index, vectors = built(), integers(4, DIM, seed=1)
    best = index.search(vectors, 2, backend="reference").ids
    known = KnownQueries(index, vectors, index.excluded_rows(best.reshape(-1), np.arange(0, 9, 2)), backend="interpret")
    lists, rows = np.array([1, 2, 3]), np.array([2, 0, 3])
    also = [index.ids[:3], np.array([], np.int64), index.ids[:9]]
    got = known.search(lists, rows, K, also)
    assert not got.certified.all()
    want = index.search(vectors[rows], K, exclude=known.excluded(lists, also), backend="reference")
    assert got.ids.tolist() == want.ids.tolist()


def test_vectors_that_were_written_are_copied_by_refresh() -> None:
    index, vectors = built(), integers(20, DIM, seed=1)
    known = KnownQueries(
        index, vectors, index.excluded_rows(np.empty(0, np.int64), np.zeros(2, np.int64)), backend="interpret"
    )
    known.warm_up()
    vectors[3] = -vectors[3]
    known.refresh(np.array([3]))
    got = known.search(np.zeros(1, np.int64), np.array([3]), K)
    assert got.ids.tolist() == index.search(vectors[[3]], K, backend="reference").ids.tolist()


@pytest.mark.parametrize(("lists", "rows"), [([1], [0]), ([-1], [0]), ([0], [20])])
def test_known_queries_out_of_range_are_refused(lists: list[int], rows: list[int]) -> None:
    index = built()
    excluded = index.excluded_rows(np.empty(0, np.int64), np.zeros(2, np.int64))
    known = KnownQueries(index, integers(20, DIM), excluded, backend="interpret")
    with pytest.raises(ValueError, match="expected 0 to"):
        known.search(np.array(lists), np.array(rows), K)


# --- buckets ---


def poisoned(searcher: _cuda.Searcher) -> None:
    """Fill every buffer that is kept with what no search may read."""
    for kept in searcher._kept.values():
        for name, tensor in {**kept.body._scratch, **kept.body.inputs.tensors, **kept.body.outputs.tensors}.items():
            if name != "table":
                tensor.fill_(torch.nan if tensor.is_floating_point() else 113)


def queries_of(kind: str, batch: int) -> object:
    table = integers(9, DIM, seed=3)
    rng = np.random.default_rng(batch)
    if kind == "lookup":
        return Lookup(table, rng.integers(0, 9, batch))
    offsets = np.cumsum([0, *np.resize([1, 2, 0, 4], batch)])
    if kind == "bag":
        return Bag(table, rng.integers(0, 9, offsets[-1]), offsets)
    if kind == "weighted":
        return Bag(table, rng.integers(0, 9, offsets[-1]), offsets, integers(offsets[-1]) + 0.5)
    return integers(batch, DIM, seed=batch)


@pytest.mark.parametrize("kind", ["dense", "lookup", "bag", "weighted"])
def test_a_bucket_is_used_again_whatever_its_buffers_hold(kind: str) -> None:
    """Batches of 3 and 4, k of 1 to 16, lists of one length or another: one bucket, one set of buffers."""
    index = built()
    on_device = index.to("interpret")
    for batch, k, n_excluded in ((4, 16, 3), (3, 5, 16), (4, 1, 1)):
        query = queries_of(kind, batch)
        best = index.search(query, n_excluded, backend="reference").ids
        exclude = [*best[:-1], best[-1, :1]]
        kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
        poisoned(on_device._searcher)
        got = index.search(query, k, exclude=exclude, backend="interpret")
        assert_identical_topk(got, truth(index, query), k, kept)
    assert len(on_device._searcher._kept) == 1


def test_sizes_share_a_bucket_up_to_the_next() -> None:
    one = Bucket("dense", 1, 10)
    assert choose_bucket(one) == Bucket("dense", 1, 16, is_captured=True)
    assert choose_bucket(Bucket("dense", 5, 17, longest=3, excluded=9, masks=5)) == Bucket(
        "dense", 8, 128, longest=16, excluded=128, masks=8, is_captured=True
    )
    assert choose_bucket(Bucket("bag", 3, 129, terms=17)).terms == 32
    assert choose_bucket(Bucket("dense", 3, 10, masks=1)).masks == 1


@pytest.mark.parametrize(
    "exact",
    [
        Bucket("dense", 1025, 10),
        Bucket("dense", 1, 1025),
        Bucket("dense", 1, 10, longest=8193, excluded=8193),
        Bucket("dense", 1024, 10, longest=1025, excluded=2000),
        Bucket("bag", 1, 10, terms=(1 << 16) + 1),
    ],
)
def test_beyond_every_bucket_sizes_are_exact_and_not_captured(exact: Bucket) -> None:
    assert choose_bucket(exact) == exact
    assert not exact.is_captured


def test_beyond_every_bucket_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_bucket, "LARGEST_BATCH", 2)
    monkeypatch.setattr(gpu_bucket, "KS", (4, 8))
    monkeypatch.setattr(_cuda, "choose_bucket", choose_bucket.__wrapped__)  # without those it remembers
    index = built()
    on_device = index.to("interpret")
    for batch, k in ((3, 5), (2, 9)):
        query = integers(batch, DIM, seed=1)
        got = index.search(query, k, exclude=[[1]] * batch, backend="interpret")
        assert_identical_topk(got, truth(index, query), k)
    assert not on_device._searcher._kept


class Replayed:
    """A graph on a device that is none: it launches what it was captured from."""

    def __init__(self, body: Any) -> None:
        self.body, self.replays = body, 0

    def replay(self) -> None:
        self.replays += 1
        self.body.launch()


def test_the_second_search_of_a_bucket_is_captured_and_the_others_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[Replayed] = []
    monkeypatch.setattr(_cuda.Searcher, "_capture", lambda self, body: captured.append(Replayed(body)) or captured[-1])
    index = built()
    searcher = index.to("interpret")._searcher
    searcher._captures = True
    for at in range(4):
        query = integers(2, DIM, seed=at)
        assert_identical_topk(index.search(query, K, backend="interpret"), truth(index, query), K)
        assert [graph.replays for graph in captured] == ([at] if at else [])


def test_the_least_recently_used_buckets_go_first() -> None:
    index = built()
    on_device = index.to("interpret", settings=GpuSettings(graphs=2))
    for batch in (1, 2, 1, 4):
        index.search(integers(batch, DIM), 1, backend="interpret")
    assert [bucket.batch for bucket, _ in on_device._searcher._kept] == [1, 4]
    index.to("interpret", settings=GpuSettings(kept_bytes=1))
    for batch in (1, 2):
        index.search(integers(batch, DIM), 1, backend="interpret")
    assert [bucket.batch for bucket, _ in index.on_device("interpret")._searcher._kept] == [2]


@pytest.mark.parametrize("kind", ["dense", "bag"])
def test_a_batch_is_cut_where_its_buffers_would_take_too_much(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_pass(monkeypatch)  # and much is repaired, in parts too
    batches: list[int] = []
    launch = _cuda_body.Body.launch
    monkeypatch.setattr(_cuda_body.Body, "launch", lambda body: (batches.append(body._bucket.batch), launch(body)))
    index = built()
    index.to("interpret", settings=GpuSettings(candidate_bytes=1 << 14))
    query = queries_of(kind, 3)
    exclude = [index.ids[b : b + 2] for b in range(3)]
    kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
    got = index.search(query, K, exclude=exclude, allow=np.ones((3, ROWS), np.bool_), backend="interpret")
    assert_identical_topk(got, truth(index, query), K, kept)
    assert max(batches) < 3
    on_device = index.on_device("interpret")
    if kind == "dense":
        found = on_device.repair(on_device.search(torch.from_numpy(query), K))  # type: ignore[arg-type]
        assert_identical_topk(as_topk(found), truth(index, query), K)


@pytest.mark.parametrize("given", [{"candidate_bytes": 0}, {"graphs": -1}, {"kept_bytes": -1}])
def test_settings_out_of_range_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"invalid .*{next(iter(given))}=-?[01]"):
        GpuSettings(**given)


# --- where the rows are, and in which dtype ---


@pytest.mark.parametrize("dim", [16, 17])
@pytest.mark.parametrize("half", [False, True])
def test_rows_on_the_host_give_the_same_answer(dim: int, half: bool, tmp_path: Path) -> None:
    rows = integers(ROWS, dim) + np.float32(0 if half else 2**-12)
    index = ItemIndex.build(rows)
    index.save(tmp_path / "index")
    for one in (index, ItemIndex.load(tmp_path / "index")):
        on_device = one.to("interpret", rows="host")
        query = integers(2, dim, seed=1)
        assert_identical_topk(one.search(query, K, backend="interpret"), truth(one, query), K)
        assert on_device.device_bytes < state_bytes(ROWS, dim, 2)
        assert on_device.row_dtype == ("float16" if half else "float32")
    shared = index.to("interpret", rows="host")._table.items.data_ptr() == index.embeddings.ctypes.data
    assert shared == (dim == 16 and not half), "rows that can be read where they are are not copied"


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.0, "float16"),
        (2**-24, "float16"),
        (1e5, "float32"),
        (2.0**100, "bfloat16"),
        (65504.0, "float16"),
        (0.1, "float32"),
    ],
)
def test_rows_have_the_narrowest_dtype_that_holds_them(value: float, dtype: str) -> None:
    rows = np.ones((3, 2), np.float32)
    rows[2, 1] = value
    assert _cuda_table.exact_dtype(rows) == dtype
    index = ItemIndex.build(rows)
    on_device = index.to("interpret")
    assert on_device.row_dtype == dtype
    assert dtype in repr(on_device)
    query = np.ones((1, 2), np.float32)
    assert index.search(query, 3, backend="interpret").scores.tolist() == index.search(query, 3).scores.tolist()


def test_a_bfloat16_table_is_taken_as_it_is() -> None:
    rows = (torch.from_numpy(integers(ROWS, DIM)) * 2.0**80).bfloat16()
    index = ItemIndex.build(rows)
    assert index.to("interpret").row_dtype == "bfloat16"
    query = integers(2, DIM, seed=1)
    assert_identical_topk(index.search(query, K, backend="interpret"), truth(index, query), K)


@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (ROWS, 16), (ROWS, 17)])
def test_the_bytes_on_the_device_are_those_predicted(rows: int, dim: int) -> None:
    index = ItemIndex.build(np.full((rows, dim), 0.1, np.float32))
    few = 3 * 8  # limits
    assert index.to("interpret").device_bytes == state_bytes(rows, dim) + few
    assert index.to("interpret", rows="host").device_bytes == state_bytes(rows, dim, rows_on="host") + few
    index = ItemIndex.build(np.full((rows, dim), 0.5, np.float32), codes="none")
    assert index.to("interpret").device_bytes == state_bytes(rows, dim, 2, coded=False) + few


def test_the_reach_of_80_gb() -> None:
    assert max_rows(80 * 10**9, 128) == 80 * 10**9 // (128 + 16 + 512)
    assert max_rows(80 * 10**9, 128, rows_on="host") == 80 * 10**9 // (128 + 16)


# --- faults ---


def test_too_little_memory_says_what_would_fit_and_offers_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_table, "_free_bytes", lambda device: 70_000)
    monkeypatch.setattr(_cuda_table, "_copied", lambda array, device: torch.from_numpy(np.array(array)))
    index = ItemIndex.build(np.full((1000, 48), 0.1, np.float32))
    given: Any = {"normalize": False, "max_abs": 1.0}
    with pytest.raises(DeviceMemoryError, match=r'rows="host" it takes 64,000 bytes there, which fit') as raised:
        _cuda_table.to_device_table(index.embeddings, index.ids, index.codes, torch.device("cuda"), **given)
    error = raised.value
    assert (error.needed_bytes, error.free_bytes, error.fitting_rows) == (256_000, 70_000, 70_000 // 256)
    assert "256,000 bytes and 70,000 are free, which hold 273 items" in str(error)
    index = ItemIndex.build(np.full((2000, 48), 0.1, np.float32))
    with pytest.raises(DeviceMemoryError, match="do not fit either"):
        _cuda_table.to_device_table(index.embeddings, index.ids, index.codes, torch.device("cuda"), **given)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> ItemIndex:
    def launch(body: Any) -> None:
        raise error

    monkeypatch.setattr(_cuda_body.Body, "launch", launch)
    return built()


@pytest.mark.parametrize(
    "text", ["CUDA error: an illegal memory access was encountered", "Triton Error [CUDA]: unspecified launch failure"]
)
def test_a_lost_device_is_told_and_stays_lost(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    index = failing(monkeypatch, RuntimeError(text))
    with pytest.raises(DeviceLost, match=r"it failed in the middle of a search: .*" + text[-20:]):
        index.search(integers(1, DIM), 1, backend="interpret")
    monkeypatch.undo()
    with pytest.raises(DeviceLost, match="only a new process can use it"):
        index.search(integers(1, DIM), 1, backend="interpret")


def test_other_errors_are_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    index = failing(monkeypatch, RuntimeError("a bug"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^a bug$"):
            index.search(integers(1, DIM), 1, backend="interpret")


def test_buffers_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    index = failing(monkeypatch, torch.cuda.OutOfMemoryError("tried to allocate 3 GiB"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (77, 100))
    with pytest.raises(DeviceMemoryError, match="tried to allocate 3 GiB; a smaller batch") as raised:
        index.search(integers(1, DIM), 1, backend="interpret")
    assert raised.value.free_bytes == 77


def test_a_fork_is_told_that_it_cannot_use_the_device() -> None:
    index = built()
    index.search(integers(1, DIM), 1, backend="interpret")
    child = os.fork()
    if child == 0:
        try:
            index.search(integers(1, DIM), 1, backend="interpret")
        except DeviceError as error:
            os._exit(0 if "a fork cannot use CUDA: start processes by 'spawn'" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_of_a_process_that_uses_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(DeviceError, match="a fork of one that uses CUDA"):
        _cuda.open_device("cuda")


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "tpu", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_cuda, "InterpretedFunction", type(None))
    with pytest.raises(DeviceUnavailable, match=rf"invalid device='{name}': must be cuda:0 to cuda:1"):
        _cuda.open_device(name)
    assert _cuda.open_device("cuda:1") == torch.device("cuda", 1)


def test_rows_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="invalid rows='disk'"):
        built().to("interpret", rows="disk")  # type: ignore[arg-type]


class Runtime:
    """What `torch.cuda.cudart` gives, as far as memory is locked."""

    def __init__(self, status: int) -> None:
        self.status, self.locked = status, dict[int, int]()

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 3, "portable, and mapped for the device"
        self.locked[pointer] = size
        return self.status

    def cudaHostUnregister(self, pointer: int) -> None:  # noqa: N802
        del self.locked[pointer]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    made = Runtime(0)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    yield made


def test_rows_on_the_host_are_locked_as_long_as_they_are_used(runtime: Runtime) -> None:
    rows = _cuda_table._rows(integers(10, 16), "float32", torch.device("cuda"), "host")
    assert runtime.locked == {rows.data_ptr(): 10 * 16 * 4}
    del rows
    gc.collect()
    assert not runtime.locked


def test_memory_that_cannot_be_locked_is_told(runtime: Runtime) -> None:
    runtime.status = 2
    with pytest.raises(DeviceError, match=r"got CUDA error 2 for 640 bytes, expected host memory that can be locked"):
        _cuda_table._rows(integers(10, 16), "float32", torch.device("cuda"), "host")


def test_the_index_made_last_is_the_one_that_searches() -> None:
    index = built()
    first = index.on_device("interpret")
    assert index.on_device("interpret") is first
    second = index.to("interpret", rows="host")
    assert isinstance(second, DeviceIndex)
    assert index.on_device("interpret") is second
