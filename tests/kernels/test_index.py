"""What an index is built from, what it refuses, and that it comes back from a file as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fuserec.kernels
from fuserec.kernels import ItemIndex

ROWS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


def test_rows_are_kept_in_the_order_of_ids() -> None:
    index = ItemIndex.build(ROWS, [30, 10, 20])
    assert index.ids.tolist() == [10, 20, 30]
    assert index.embeddings.tolist() == [[3, 4], [5, 6], [1, 2]]
    assert (index.rows, index.dim, index.metric) == (3, 2, "dot")


def test_the_size_counts_the_codes_of_64_rows() -> None:
    assert ItemIndex.build(ROWS, codes="none").nbytes == 3 * 2 * 4 + 3 * 8
    # 64 rows of 4 columns of codes, a scale and a residual each, and 4 reaches.
    assert ItemIndex.build(ROWS).nbytes == 3 * 2 * 4 + 3 * 8 + 64 * 4 + 64 * 8 + 4 * 4


def test_ids_default_to_the_positions() -> None:
    assert ItemIndex.build(ROWS).ids.tolist() == [0, 1, 2]


def test_the_index_is_apart_from_what_it_was_built_from() -> None:
    rows = ROWS.copy()
    index = ItemIndex.build(rows)
    rows[:] = 0
    assert index.embeddings.tolist() == ROWS.tolist()
    with pytest.raises(ValueError, match="read-only"):
        index.embeddings[0, 0] = 1


@pytest.mark.parametrize(
    "embeddings",
    [ROWS.astype(np.float16), np.asfortranarray(ROWS), torch.from_numpy(ROWS.copy()).requires_grad_()],
    ids=["float16", "fortran_order", "torch"],
)
def test_embeddings_of_any_make(embeddings: object) -> None:
    index = ItemIndex.build(embeddings)
    assert index.embeddings.dtype == np.float32
    assert index.embeddings.tolist() == ROWS.tolist()


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.ones(3, np.float32), r"embeddings: got shape \(3,\), expected two dimensions"),
        (np.ones((3, 2)), "embeddings: got dtype float64, expected float32 or float16"),
        (torch.ones(3, 2).to(torch.float8_e4m3fn), "embeddings: got dtype torch.float8_e4m3fn"),
        (np.ones((0, 2), np.float32), r"embeddings: got shape \(0, 2\), expected 1 to"),
        (np.ones((3, 0), np.float32), r"embeddings: got shape \(3, 0\), expected 1 to"),
        (np.array([[1], [np.nan]], np.float32), "embeddings: got NaN or infinity in the row of item 1"),
        (np.array([[-np.inf], [1]], np.float32), "embeddings: got NaN or infinity in the row of item 0"),
        (np.array([[np.nan], [np.inf]], np.float32), "embeddings: got NaN or infinity in the row of item 0"),
    ],
    ids=["one_axis", "float64", "float8", "no_rows", "no_columns", "nan", "inf", "nan_and_inf"],
)
def test_bad_embeddings_are_refused(embeddings: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemIndex.build(embeddings)


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        ([1, 2], "item_ids: got 2 ids, expected one for each of 3 embeddings"),
        ([[1, 2, 3]], r"item_ids: got shape \(1, 3\), expected one dimension"),
        ([4, 5, 4], "item_ids: got 4 more than once"),
        ([4, -1, 5], "item_ids: got -1, expected ids from 0"),
        ([1.0, 2.0, 3.0], "item_ids: got dtype float64, expected integers"),
        ([True, False, True], "item_ids: got dtype bool, expected integers"),
        (np.array([1, 2, 2**63], np.uint64), "item_ids: got 9223372036854775808, expected integers that fit int64"),
        (["a", "b", "c"], "item_ids: got dtype <U1, expected integers"),
    ],
    ids=["too_few", "two_axes", "repeated", "negative", "float", "bool", "beyond_int64", "text"],
)
def test_bad_ids_are_refused(item_ids: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemIndex.build(ROWS, item_ids)


def test_bad_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match="metric: got 'l2', expected 'dot' or 'cosine'"):
        ItemIndex.build(ROWS, metric="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="embeddings: got a zero row for item 7"):
        ItemIndex.build(np.array([[1, 2], [0, 0]], np.float32), [8, 7], metric="cosine")


def test_cosine_scales_rows_of_any_size_to_unit_length() -> None:
    rows = np.array([[3e-30, 4e-30], [3e30, 4e30], [-1e-42, 0]], np.float32)
    index = ItemIndex.build(rows, metric="cosine")
    assert np.allclose(index.embeddings, [[0.6, 0.8], [0.6, 0.8], [-1, 0]])


def test_unknown_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="codes: got 'int4', expected 'int8' or 'none'"):
        ItemIndex.build(ROWS, codes="int4")  # type: ignore[arg-type]


def test_rows_too_wide_for_codes_are_refused_unless_there_are_none() -> None:
    wide = np.ones((1, 65537), np.float32)
    with pytest.raises(ValueError, match="got 65537 columns, expected at most 65536"):
        ItemIndex.build(wide)
    assert ItemIndex.build(wide, codes="none").search(wide, 1, backend="cpu").ids.tolist() == [[0]]


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "1", None])
def test_k_must_be_a_positive_integer(k: object) -> None:
    with pytest.raises(ValueError, match="k: got .* expected an integer of at least 1"):
        ItemIndex.build(ROWS).search(ROWS, k)  # type: ignore[arg-type]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend: got 'tpu', expected one of auto, cpu, cuda, interpret, reference"):
        ItemIndex.build(ROWS).search(ROWS, 1, backend="tpu")  # type: ignore[arg-type]


@pytest.mark.parametrize("codes", ["int8", "none"])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_an_index_comes_back_from_its_file(tmp_path: Path, metric: str, codes: str) -> None:
    index = ItemIndex.build(ROWS, [30, 10, 20], codes=codes, metric=metric)
    index.save(tmp_path / "items.index")
    loaded = ItemIndex.load(str(tmp_path / "items.index"))
    assert (loaded.metric, loaded.max_abs) == (index.metric, index.max_abs)
    assert loaded.ids.tolist() == index.ids.tolist()
    assert loaded.embeddings.tolist() == index.embeddings.tolist()
    assert (loaded.codes is None) == (codes == "none")
    for name in ("codes", "scale", "residual", "reach") if codes == "int8" else ():
        assert (getattr(loaded.codes, name) == getattr(index.codes, name)).all()
    got, want = loaded.search(ROWS, 2, backend="cpu"), index.search(ROWS, 2, backend="cpu")
    assert got.ids.tolist() == want.ids.tolist()


def test_the_public_names_are_complete() -> None:
    assert sorted(fuserec.kernels.__all__) == ["Bag", "ExcludedRows", "ItemIndex", "KnownQueries", "Lookup", "TopK"]


def test_importing_and_searching_on_the_cpu_bring_no_torch() -> None:
    code = """
import sys
from fuserec.kernels import ItemIndex
assert not {"torch", "triton", "numba"} & set(sys.modules)
import numpy as np
ItemIndex.build(np.ones((2, 2), np.float32)).search(np.ones((1, 2), np.float32), 1)
assert "numba" in sys.modules
assert not {"torch", "triton"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
