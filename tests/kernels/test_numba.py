"""What only the CPU twin can get wrong: parts, threads, and the compiler's cache."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from fuserec.kernels import ItemIndex

from .checks import assert_identical_topk, truth

ROWS, DIM = 9001, 64  # one query over it is more than one thread's work


@pytest.fixture(scope="module")
def index() -> ItemIndex:
    return ItemIndex.build(np.random.default_rng(0).integers(-3, 4, (ROWS, DIM)).astype(np.float32))


def queries(batch: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-3, 4, (batch, DIM)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5], ids=["rows_in_parts", "a_query_each", "uneven_parts"])
@pytest.mark.parametrize("k", [1, 50, ROWS + 1])
def test_parts_are_merged_in_the_total_order(index: ItemIndex, batch: int, k: int) -> None:
    exclude = [np.arange(b, ROWS, 7) for b in range(batch)]
    kept = np.arange(ROWS) % 7 != np.arange(batch)[:, None]
    got = index.search(queries(batch), k, exclude=exclude, backend="cpu")
    assert_identical_topk(got, truth(index, queries(batch)), k, kept)


def test_duplicates_tie_across_parts() -> None:
    row = np.random.default_rng(0).standard_normal((1, 101)).astype(np.float32)
    index = ItemIndex.build(np.repeat(row, 6007, axis=0))
    got = index.search(row, 6007, backend="cpu")
    assert got.ids[0].tolist() == list(range(6007))


def test_the_number_of_threads_is_the_callers(index: ItemIndex) -> None:
    with_all = index.search(queries(3), 20, backend="cpu")
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with_one = index.search(queries(3), 20, backend="cpu")
    finally:
        numba.set_num_threads(before)
    assert with_one.ids.tolist() == with_all.ids.tolist()


def test_searches_from_four_python_threads() -> None:
    rng = np.random.default_rng(0)
    index = ItemIndex.build(rng.standard_normal((70_001, 64)).astype(np.float32))
    query = rng.standard_normal((40, 2, 64)).astype(np.float32)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda q: index.search(q, 5, backend="cpu").ids.tolist(), query))
    assert got == [index.search(q, 5, backend="cpu").ids.tolist() for q in query]


def test_threads_may_share_an_index(index: ItemIndex) -> None:
    want = index.search(queries(8), 5, backend="cpu").ids
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda b: index.search(queries(8)[b : b + 1], 5, backend="cpu").ids[0], range(8)))
    assert np.stack(got).tolist() == want.tolist()


def test_a_second_process_does_not_compile(index: ItemIndex) -> None:
    index.search(queries(1), 5, backend="cpu")
    code = """
import numpy as np
from fuserec.kernels import ItemIndex
from fuserec.kernels.search import _numba_run
rows = np.random.default_rng(0).standard_normal((9001, 64)).astype(np.float32)
ItemIndex.build(rows).search(rows[:1], 5, backend="cpu")
assert _numba_run.work.stats.cache_hits and not _numba_run.work.stats.cache_misses
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_after_warming_up_nothing_is_compiled_or_loaded() -> None:
    """A request would wait for it, with a cold cache for seconds."""
    code = """
import sys
import numpy as np
from fuserec.kernels import ItemIndex, KnownQueries

def compiled():
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith("fuserec.kernels.search")]
    functions = [function for values in modules for function in values.values() if hasattr(function, "signatures")]
    return {str(function): len(function.signatures) for function in functions}

rng = np.random.default_rng(0)
queries = rng.standard_normal((64, 32)).astype(np.float32)
small, large, alike = (ItemIndex.build(rows.astype(np.float32)) for rows in (
    rng.standard_normal((300, 32)), rng.standard_normal((100_000, 32)), np.ones((40_000, 32))
))
known = [KnownQueries(index, queries, index.excluded_rows(np.arange(9), np.array([0, 9]))) for index in (small, large)]
small.warm_up()
known[0].warm_up()
before = compiled()
assert before and max(before.values()) > 0, before
for index in (small, large):
    for batch in (1, 2, 64):
        for k in (1, 10, 200):
            index.search(queries[:batch], k)
    index.search(queries[:2], 10, exclude=[np.array([3])] * 2, allow=index.mask([[1, 2, 3]] * 2))
assert not alike.search(queries[:1], 10).certified.any(), "ties need the second search"
for each in known:
    for batch in (1, 64):
        lists, rows = np.zeros(batch, np.int64), np.arange(batch)
        each.search(lists, rows, 10)
        each.search(lists, rows, 200, [np.arange(3)] * batch)
after = compiled()
new = {name: (before.get(name, 0), count) for name, count in after.items() if count != before.get(name, 0)}
assert not new, new
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
