"""The index file: plain safetensors, mapped without a copy, and refused when anything about it is off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from fuserec.kernels import ItemIndex


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of an index of 5 rows and 3 columns, sizes that nothing is aligned by."""
    path = tmp_path / "items.index"
    ItemIndex.build(np.arange(1, 16, dtype=np.float32).reshape(5, 3), [9, 8, 7, 6, 5]).save(path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the header and leave the data as it is."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def test_other_readers_can_open_the_file(path: Path) -> None:
    with safe_open(path, "np") as file:
        assert file.metadata()["format"] == "fuserec-index"
        assert file.metadata()["version"] == "2"
        assert file.get_tensor("item_ids").tolist() == [5, 6, 7, 8, 9]
        assert file.get_tensor("embeddings")[-1].tolist() == [1, 2, 3]


def test_the_table_is_mapped_and_aligned(path: Path) -> None:
    index = ItemIndex.load(path)
    assert index.codes is not None
    for array in (index.embeddings, index.ids, index.codes.codes, index.codes.reach):
        assert not array.flags.owndata
        assert not array.flags.writeable
        base: Any = array
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
    assert index.ids.ctypes.data % 8 == 0
    assert index.embeddings.ctypes.data % 64 == 0
    assert index.codes.codes.ctypes.data % 64 == 0


def test_saving_replaces_in_one_step_and_leaves_nothing_beside(path: Path) -> None:
    loaded = ItemIndex.load(path)
    ItemIndex.build(np.ones((2, 2), np.float32)).save(path)
    assert loaded.embeddings[-1].tolist() == [1, 2, 3]  # the old file lives on under its mapping
    assert ItemIndex.load(path).rows == 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(version="1"), "got version '1', expected '2'; build the index again"),
        (lambda h: h["__metadata__"].update(format="pt"), "got format 'pt', expected 'fuserec-index'"),
        (lambda h: h.pop("__metadata__"), "got format None, expected 'fuserec-index'"),
        (lambda h: h["__metadata__"].update(metric="l2"), "metric dot or cosine"),
        (lambda h: h["__metadata__"].pop("max_abs"), "expected rows, dim, max_abs, metric and codes"),
        (lambda h: h["__metadata__"].update(codes="int4"), "got codes 'int4', expected 'int8' or 'none'"),
        (lambda h: h["__metadata__"].pop("codes"), "metric and codes"),
        (lambda h: h["codes"].update(shape=[4, 1, 64]), "got codes as .* expected"),
        (lambda h: h.pop("residual"), "got tensor 'embeddings' at byte 824 of the data, expected it at 568"),
        (lambda h: h["__metadata__"].update(max_abs="nan"), "max_abs"),
        (lambda h: h["__metadata__"].update(rows="-5"), "expected rows and dim above 0"),
        (lambda h: h["__metadata__"].update(rows="many"), "expected rows, dim, max_abs, metric and codes"),
        (lambda h: h["__metadata__"].update(rows="6"), "got item_ids as .* expected"),
        (lambda h: h["__metadata__"].update(dim="4"), "got embeddings as .* expected"),
        (lambda h: h["embeddings"].update(dtype="F16"), "gives tensor 'embeddings' 60 bytes, expected 30 for F16"),
        (lambda h: h["embeddings"].update(data_offsets=[0, 60]), "got tensor 'embeddings' at byte 0 of the data"),
        (lambda h: h.pop("item_ids"), "got tensor 'reach' at byte 40 of the data, expected it at 0"),
    ],
    ids=[
        "version", "format", "no_metadata", "metric", "no_max_abs", "codes", "no_codes", "codes_shape", "no_residual",
        "max_abs", "negative_rows", "rows_no_number",
        "more_rows", "more_columns", "dtype", "overlap", "no_ids",
    ],
)  # fmt: skip
def test_a_header_at_odds_is_refused(path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        ItemIndex.load(path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "got 0 bytes"),
        (b"\x10", "got 1 bytes"),
        (b"\xff" * 64, "a header length of 18446744073709551615"),
        ((100).to_bytes(8, "little") + b"{}", "a header length of 100"),
        ((2).to_bytes(8, "little") + b"no", "not JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "holds a JSON list"),
        (b"PK\x03\x04" + bytes(200), "expected a safetensors file"),
    ],
    ids=["empty", "one_byte", "absurd_length", "short", "no_json", "no_text", "no_object", "zip"],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        ItemIndex.load(tmp_path / "file")


@pytest.mark.parametrize("cut", [1, 60, 61])
def test_a_truncated_file_is_refused(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="it may be truncated"):
        ItemIndex.load(path)


def test_data_after_the_end_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="got 885 bytes of tensors, expected 884"):
        ItemIndex.load(path)


def test_ids_out_of_order_are_refused(tmp_path: Path) -> None:
    tensors = {"item_ids": np.array([2, 1]), "embeddings": np.ones((2, 1), np.float32)}
    metadata = {"metric": "dot", "rows": "2", "dim": "1", "max_abs": "1.0", "codes": "none"}
    save_file(tensors, tmp_path / "file", {"format": "fuserec-index", "version": "2", **metadata})
    with pytest.raises(ValueError, match="got item ids 2 to 1, expected 2 ascending ids"):
        ItemIndex.load(tmp_path / "file")


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": np.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="expected 'fuserec-index'"):
        ItemIndex.load(tmp_path / "model.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ItemIndex.load(tmp_path / "nowhere")
