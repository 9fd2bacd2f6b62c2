"""The answer from codes is the answer from rows, to the bit; and where the proof fails, a wider search repairs it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.kernels import ItemIndex, TopK

from .checks import assert_same_topk, truth

Floats = npt.NDArray[np.float32]
ROWS, DIM = 12_000, 24


def normals(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def both(rows: Floats, query: Floats, k: int, exclude: object = None) -> TopK:
    """Search with codes and without; the answers must be one. Return the one with codes."""
    got = ItemIndex.build(rows).search(query, k, exclude=exclude, backend="cpu")
    want = ItemIndex.build(rows, codes="none").search(query, k, exclude=exclude, backend="cpu")
    assert got.ids.tolist() == want.ids.tolist()
    assert got.scores.tolist() == want.scores.tolist()
    assert want.certified.all() and (want.rescored == len(rows)).all()
    return got


@pytest.mark.parametrize("batch", [1, 3, 8, 70])
@pytest.mark.parametrize("k", [1, 100, 1000])
def test_few_rows_are_rescored(k: int, batch: int) -> None:
    got = both(normals(ROWS, DIM), normals(batch, DIM, seed=1), k)
    assert got.certified.all()
    assert (got.rescored >= k).all() and (got.rescored < 3 * k + 50).all()


# --- tables on which bounds are of little use ---


def test_equal_rows_are_repaired() -> None:
    got = both(np.repeat(normals(1, DIM), 40_000, axis=0), normals(2, DIM, seed=1), 5)
    assert got.ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert not got.certified.any()


def test_near_ties_are_repaired() -> None:
    """Rows that differ by a few units in the last place, which no code shows."""
    rows = np.repeat(normals(1, DIM), 40_000, axis=0)
    rows[:, 3] += np.float32(1e-6) * np.random.default_rng(2).integers(0, 9, 40_000).astype(np.float32)
    got = both(rows, np.abs(normals(3, DIM, seed=1)), 20)
    assert not got.certified.any()
    assert (got.rescored > 20).all()


def test_repaired_queries_keep_their_filters() -> None:
    rows = np.repeat(normals(1, DIM), 40_000, axis=0)
    got = both(rows, normals(2, DIM, seed=1), 4, exclude=[[0, 2], [1, 39_999]])
    assert got.ids.tolist() == [[1, 3, 4, 5], [0, 2, 3, 4]]
    assert not got.certified.any()


def test_one_huge_entry_a_row() -> None:
    rows = normals(ROWS, DIM)
    rows[np.arange(ROWS), np.arange(ROWS) % DIM] *= 1e4
    both(rows, normals(3, DIM, seed=1), 50)


@pytest.mark.parametrize("query_size", [1e-20, 1.0, 1e15])
def test_rows_from_tiny_to_huge(query_size: float) -> None:
    sizes = 10.0 ** np.random.default_rng(3).uniform(-20, 20, (ROWS, 1))
    both((normals(ROWS, DIM) * sizes).astype(np.float32), normals(3, DIM, seed=1) * np.float32(query_size), 50)


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 3e37])
def test_rows_of_one_size(value: float) -> None:
    rows = np.full((3000, 4), value, np.float32)
    rows[7] *= -1
    both(rows, np.array([[1, 0, 0, 0], [-0.5, 0, 0, 0], [0, 0, 0, 0]], np.float32), 9)


def test_zero_queries_need_no_repair() -> None:
    got = both(normals(ROWS, DIM), np.zeros((2, DIM), np.float32), 9)
    assert got.ids.tolist() == [list(range(9))] * 2
    assert got.certified.all()


@given(data=st.data())
@settings(derandomize=True, deadline=None, max_examples=120)
def test_codes_never_change_an_answer(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    n, dim = data.draw(st.integers(4, 3000)), data.draw(st.integers(1, 40))
    distinct = data.draw(st.integers(1, n))
    size = 10.0 ** data.draw(st.sampled_from([-20, -6, 0, 6, 15]))
    spread = data.draw(st.sampled_from([0.0, 1.0, 10.0]))
    rows = rng.standard_normal((distinct, dim)) * np.exp(spread * rng.standard_normal((distinct, 1))) * size
    rows = np.clip(rows, -1e20, 1e20)[rng.integers(0, distinct, n)].astype(np.float32)
    batch = data.draw(st.integers(1, 9))
    query = (rng.standard_normal((batch, dim)) * 10.0 ** data.draw(st.sampled_from([-15, 0, 12]))).astype(np.float32)
    exclude = [rng.integers(0, n, rng.integers(0, n)) for _ in range(batch)] if data.draw(st.booleans()) else None
    both(rows, query, data.draw(st.integers(1, max(n // 4, 1))), exclude)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_against_float64(metric: str) -> None:
    index = ItemIndex.build(normals(ROWS, DIM), metric=metric)
    query = normals(9, DIM, seed=1)
    assert_same_topk(index.search(query, 40, backend="cpu"), truth(index, query), 40)


# --- resources ---


def test_memory_stays_small() -> None:
    code = """
import resource, numpy as np
from fuserec.kernels import ItemIndex
rng = np.random.default_rng(0)
index = ItemIndex.build(rng.standard_normal((1_000_000, 16), dtype=np.float32))
query = rng.standard_normal((64, 16), dtype=np.float32)
index.search(query[:2], 100, backend="cpu")
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
open("/proc/self/clear_refs", "w").write("5")
before = peak()
index.search(query, 100, backend="cpu")
print((peak() - before) / 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(ran.stdout) < 64


# --- instruction sets ---

_ANSWERS = """
import hashlib, numpy as np
from fuserec.kernels import ItemIndex
from fuserec.kernels.search._numba_tile import ISA
rng = np.random.default_rng(0)
index = ItemIndex.build(rng.standard_normal((5000, 37)).astype(np.float32))
digest = hashlib.sha256()
for batch in (1, 3, 13, 70):
    got = index.search(rng.standard_normal((batch, 37)).astype(np.float32), 50, backend="cpu")
    assert got.certified.all()
    digest.update(got.ids.tobytes() + got.rescored.tobytes())
print(ISA, digest.hexdigest())
"""


_AMX = ("amx",)
_BEYOND_AVX2 = ("avx512", "avxvnni", "amx", "avx10", "evex512")


# Each is compiled anew, which takes half a minute; no processor that is sold has only what the portable one uses.
@pytest.mark.parametrize("isa", ["vnni", "avx2", pytest.param("portable", marks=pytest.mark.slow)])
def test_every_instruction_set_gives_the_same_answers(isa: str) -> None:
    from fuserec.kernels.search._numba_tile import ISA, target_features

    order = ["portable", "avx2", "vnni", "amx"]
    if order.index(ISA) <= order.index(isa):
        pytest.skip(f"this processor has nothing beyond {ISA} to compare {isa} with")
    left_out = _AMX if isa == "vnni" else _BEYOND_AVX2
    features = [f"+{name}" for name in target_features() if not name.startswith(left_out)]
    names = {"portable": "generic", "avx2": "haswell", "vnni": "cascadelake"}
    cpu = {"NUMBA_CPU_NAME": names[isa], "NUMBA_CPU_FEATURES": "+sse2" if isa == "portable" else ",".join(features)}
    want = subprocess.run([sys.executable, "-c", _ANSWERS], check=True, capture_output=True, text=True).stdout.split()
    ran = subprocess.run(
        [sys.executable, "-c", _ANSWERS], check=True, capture_output=True, text=True, env=os.environ | cpu
    )
    assert ran.stdout.split() == [isa, want[1]]


def test_without_permission_for_amx_there_is_vnni() -> None:
    from fuserec.kernels.search._numba_tile import choose_isa

    features = frozenset({"avx2", "avx512vnni", "amx-int8"})
    assert choose_isa(features, may_use_amx=True) == "amx"
    assert choose_isa(features, may_use_amx=False) == "vnni"
    assert choose_isa(features - {"avx512vnni"}, may_use_amx=True) == "avx2"
    assert choose_isa(frozenset(), may_use_amx=True) == "portable"
