"""The GPU kernels over int8 codes, interpreted: bounds that hold, proofs that fail when they must, and their repair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fuserec.kernels import Bag, ItemIndex, Lookup, aot
from fuserec.kernels.filters import as_row_filter
from fuserec.kernels.query import as_pool
from fuserec.kernels.search import _cuda, _cuda_body, _kernel, _kernel_finish, _kernel_prepare, _kernel_sift
from fuserec.kernels.search._cuda_request import as_request, fill_from_host
from fuserec.kernels.search._cuda_table import DeviceTable, to_device_table
from fuserec.kernels.search.gpu_bucket import GpuSettings
from fuserec.kernels.search.gpu_config import SiftPlan
from fuserec.kernels.search.keys import unpack

from .checks import assert_identical_topk, assert_same_topk, truth
from .conftest import skip_unless_available

Floats = npt.NDArray[np.float32]
ROWS, DIM, K = 600, 24, 5


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    skip_unless_available("interpret")


def normals(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def table_of(index: ItemIndex) -> DeviceTable:
    return to_device_table(
        index.embeddings,
        index.ids,
        index.codes,
        torch.device("cpu"),
        normalize=index.metric == "cosine",
        max_abs=index.max_abs,
    )


def use_plan(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    """Sample every second tile and let few rows through, as a table of millions would."""
    plan = replace(SiftPlan(tile_stride=2, rank=9, capacity=256), **changes)
    monkeypatch.setattr(_cuda_body, "choose_plan", lambda shape, config: plan)


# --- the bound ---


def bounds_of(table: Floats, query: object) -> npt.NDArray[np.float32]:
    """Return the bound (B, N) of every row."""
    index = ItemIndex.build(table)
    pool = as_pool(query, table.shape[1])
    request = as_request(pool, as_row_filter(None, None, ids=index.ids, batch=pool.batch))
    body = _cuda_body.Body(table_of(index), request.bucket(K), request.source, 80, is_staged=True)
    fill_from_host(body.inputs, request, K)
    with np.errstate(all="ignore"):
        body._prepare()
        body._sift()
    rows, bounds = unpack(np.sort(body._scratch["keys"].numpy()))
    found = np.empty_like(bounds)
    np.put_along_axis(found, rows, bounds, axis=1)
    return found


@pytest.mark.parametrize("dim", [1, 16, 17, 130, 300])
@pytest.mark.parametrize("magnitude", [1e-20, 1e-3, 1.0, 1e15])
def test_no_score_is_above_its_bound(dim: int, magnitude: float) -> None:
    rng = np.random.default_rng(dim)
    table = (normals(90, dim) * magnitude).astype(np.float32)
    table[30:60] *= rng.choice([1e-3, 1.0, 30.0], (30, 1)).astype(np.float32)
    table[np.arange(60, 90), rng.integers(0, dim, 30)] *= 1e4  # one huge component a row
    query = normals(3, dim, seed=1) * np.array([[1], [1e-6], [1e6]], np.float32)
    query[1, 0] *= 1e5
    scores = np.einsum("bd,nd->bn", query.astype(np.float64), table.astype(np.float64))
    bounds = bounds_of(table, query)
    assert (bounds >= scores).all()
    assert (bounds >= (query[:, None] * table).sum(axis=2)).all(), "a float32 sum is above the bound"
    lengths = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(table.astype(np.float64), axis=1)
    assert (bounds - scores <= 2 * (0.5 / 127 * np.sqrt(dim) + 1e-3) * lengths + 1e-30).all(), "wider than codes are"


def test_rows_rounded_the_worst_way_stay_below_their_bound() -> None:
    table = np.full((40, 32), 1.0, np.float32)
    table[:, 1:] = (np.arange(40)[:, None] % 127 + 0.4999) / 127  # every code is short by half a step
    query = np.ones((1, 32), np.float32)
    assert (bounds_of(table, query) >= table.sum(axis=1, dtype=np.float64)).all()


# --- the proof ---


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("batch", [1, 7, 17])
def test_few_rows_are_scored_and_the_first_proof_holds(
    monkeypatch: pytest.MonkeyPatch, batch: int, metric: Any
) -> None:
    use_plan(monkeypatch)
    index = ItemIndex.build(normals(ROWS, DIM), metric=metric)
    query = normals(batch, DIM, seed=1)
    got = index.search(query, K, backend="interpret")
    assert_same_topk(got, truth(index, query), K)
    assert (got.rescored <= 48).all()


@pytest.mark.parametrize("kind", ["lookup", "bag"])
def test_lookups_and_bags_with_filters(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    use_plan(monkeypatch)
    index = ItemIndex.build(integers(ROWS, DIM))
    table = integers(9, DIM, seed=1)
    query: Any = Lookup(table, [8, 0, 8]) if kind == "lookup" else Bag(table, [0, 3, 3, 5, 1, 2, 7], [0, 4, 6, 7])
    best = index.search(query, 30, backend="reference").ids
    exclude = [best[0, :20], best[1, ::2], []]
    allow = np.arange(ROWS) % 5 > 0
    kept = allow & np.stack([~np.isin(index.ids, ids) for ids in exclude])
    got = index.search(query, K, exclude=exclude, allow=allow, backend="interpret")
    assert_identical_topk(got, truth(index, query), K, kept)


def test_near_ties_are_all_scored_and_the_first_proof_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plan(monkeypatch)
    table = normals(ROWS, DIM)
    # Fifty that the codes cannot tell apart.
    table[::12] = 2 * np.abs(table[0]) + normals(50, DIM, seed=2) * np.float32(1e-4)
    index = ItemIndex.build(table)
    query = np.abs(normals(2, DIM, seed=1))
    got = index.search(query, K, backend="interpret")
    assert_same_topk(got, truth(index, query), K)
    assert ((got.rescored >= 50) & (got.rescored < ROWS)).all(), "the rows let through were enough"


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        pytest.param(np.ones((ROWS, DIM), np.float32), {"capacity": 64}, id="more_rows_than_there_is_room_for"),
        pytest.param(integers(ROWS, DIM), {"rank": 1}, id="a_floor_above_the_kth_score"),
    ],
)
def test_what_codes_cannot_prove_is_scanned_in_float(
    monkeypatch: pytest.MonkeyPatch, table: Floats, changes: dict[str, int]
) -> None:
    use_plan(monkeypatch, **changes)
    index = ItemIndex.build(table)
    query = np.stack([table[0], -table[1], table[2]])
    exclude = [[3, 0], [], [599]]
    kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
    got = index.search(query, K, exclude=exclude, backend="interpret")
    assert_identical_topk(got, truth(index, query), K, kept)
    assert not got.certified.all()
    assert (got.rescored[~got.certified] == ROWS).all()


def test_the_plan_of_a_real_search_proves_its_answer() -> None:
    index = ItemIndex.build(normals(6000, 4))
    query = normals(1, 4, seed=1)
    got = index.search(query, 3, backend="interpret")
    assert_same_topk(got, truth(index, query), 3)
    assert got.rescored[0] <= 36


# --- variants ---


def test_a_table_that_fits_float16_is_kept_in_it() -> None:
    index = ItemIndex.build(normals(150, DIM).astype(np.float16))
    query = normals(3, DIM, seed=1)
    for codes in ("int8", "none"):
        index = ItemIndex.build(index.embeddings, codes=codes)
        got = index.search(query, K, backend="interpret")
        assert_same_topk(got, truth(index, query), K)
        assert index.on_device("interpret").row_dtype == "float16"


@pytest.mark.parametrize("k", [3, 16, 17])
def test_without_codes_small_k_is_one_pass_and_all_are_exact(k: int) -> None:
    index = ItemIndex.build(integers(150, DIM), codes="none")
    query = integers(3, DIM, seed=1)
    exclude = [[1, 5, 149], [], list(range(60))]
    kept = np.stack([~np.isin(index.ids, ids) for ids in exclude])
    got = index.search(query, k, exclude=exclude, backend="interpret")
    assert_identical_topk(got, truth(index, query), k, kept)


def test_without_integer_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    use_plan(monkeypatch, rank=5)
    monkeypatch.setattr(_cuda, "_arch", lambda device: 75)
    index = ItemIndex.build(integers(300, 130))
    query = integers(2, 130, seed=1)
    assert_identical_topk(index.search(query, K, backend="interpret"), truth(index, query), K)


# --- no drift ---


class Recorder:
    """A kernel that notes the compile-time arguments of its launches."""

    def __init__(self, kernel: Any, launches: list[tuple[str, dict[str, object]]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: object, **given: object) -> None:
            self.launches.append((self.kernel.fn.__name__, given))
            self.kernel[grid](*args, **given)

        return launch


def test_what_is_launched_is_what_is_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = [(v.kernel.fn.__name__, {**v.constexprs, **v.options}) for v in aot.variants(80)]
    launches: list[tuple[str, dict[str, object]]] = []
    for module in (_kernel, _kernel_finish, _kernel_prepare, _kernel_sift):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    use_plan(monkeypatch, rank=5)
    pool = as_pool(Bag(integers(9, 128), [0, 3, 5], [0, 1, 3], [1.0, 2.0, 0.5]), 128)
    for codes, k in (("int8", K), ("none", K), ("none", 20)):
        index = ItemIndex.build(integers(300, 128) + 0.3, codes=codes, metric="cosine")  # type: ignore[arg-type]
        out = as_row_filter([[1], [2]], np.ones(300, np.bool_), ids=index.ids, batch=2)
        source = _cuda_body.Source(None, torch.tensor([0, 2]), torch.tensor([3, 4]), 2)
        request = as_request(pool, out)
        request = replace(request, arrays=request.arrays | {"lists": np.zeros(2, np.int64)}, source=source)
        answer = _cuda.Searcher(table_of(index), GpuSettings(), source).search(request, k)
        assert not np.isin(answer.ids[0], [1, 3, 4]).any() and not np.isin(answer.ids[1], [2, 3, 4]).any()
    assert {name for name, _ in launches} == {name for name, _ in compiled}
    for launch in launches:
        assert launch in compiled, launch
