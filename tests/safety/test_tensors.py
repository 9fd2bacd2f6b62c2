"""A safetensors file is opened only if its header fits the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fuserec.errors import CheckpointError
from fuserec.untrusted.tensors import Header, TensorRecord, read_header


def write(path: Path, header: object, data: bytes = bytes(12), length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} | changes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_what_the_library_writes_is_read(path: Path) -> None:
    arrays = {"b": np.zeros((2, 3), np.float32), "a": np.zeros(5, np.int8), "none": np.zeros((0, 4), np.float16)}
    save_file(arrays, path, {"format": "pt"})
    header = read_header(path, CheckpointError)
    assert header.metadata == {"format": "pt"}
    assert {name: (record.dtype, record.shape) for name, record in header.tensors.items()} == {
        "b": ("F32", (2, 3)),
        "a": ("I8", (5,)),
        "none": ("F16", (0, 4)),
    }


def test_fields_of_the_header(path: Path) -> None:
    text = json.dumps({"a": tensor()}).encode()
    write(path, text)
    assert read_header(path, CheckpointError) == Header({"a": TensorRecord("F32", (3,), 0, 12)}, {}, 8 + len(text))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        pytest.param({"a": tensor(shape=[4])}, "12 bytes, expected 16", id="shape too large"),
        pytest.param({"a": tensor(shape=[2**62, 2**62])}, "12 bytes, expected", id="shape beyond 64 bits"),
        pytest.param({"a": tensor(shape=[-3])}, "gives tensor 'a' the shape", id="negative size"),
        pytest.param({"a": tensor(shape=[-1, -3])}, "gives tensor 'a' the shape", id="two negative sizes"),
        pytest.param({"a": tensor(shape=[3.0])}, "gives tensor 'a' the shape", id="a float for a size"),
        pytest.param({"a": tensor(shape=[True, 3])}, "gives tensor 'a' the shape", id="a bool for a size"),
        pytest.param({"a": tensor(shape=[1] * 1000)}, "gives tensor 'a' the shape", id="1000 dimensions"),
        pytest.param({"a": tensor(shape="3")}, "gives tensor 'a' the shape", id="a text for a shape"),
        pytest.param({"a": tensor(dtype="O")}, "the dtype 'O'", id="objects"),
        pytest.param({"a": tensor(dtype=["F32"])}, "the dtype", id="a list for a dtype"),
        pytest.param({"a": tensor(data_offsets=[12, 0])}, "-12 bytes", id="backwards"),
        pytest.param({"a": tensor(data_offsets=[0, 12, 24])}, "the offsets", id="three offsets"),
        pytest.param({"a": tensor(data_offsets=[4, 16])}, "at byte 4 of the data, expected it at 0", id="gap"),
        pytest.param({"a": tensor(), "b": tensor()}, "'b' at byte 0 of the data, expected it at 12", id="overlap"),
        pytest.param({"a": tensor(shape=[4], data_offsets=[0, 16])}, "may be truncated", id="outside"),
        pytest.param({"a": tensor(shape=[2], data_offsets=[0, 8])}, "got 12 bytes of tensors", id="more data"),
        pytest.param({"a": tensor(code="x")}, "expected dtype, shape and data_offsets", id="unknown field"),
        pytest.param({"a": [1]}, "expected dtype, shape and data_offsets", id="no object"),
        pytest.param({"__metadata__": {"a": 1}, "a": tensor()}, "not texts by name", id="metadata of numbers"),
        pytest.param({"__metadata__": [], "a": tensor()}, "not texts by name", id="metadata of another type"),
        pytest.param(b'{"a": {}, "a": {}}', "'a' is there twice", id="a name twice"),
        pytest.param(b"[" * 100_000, "is not JSON", id="nested deep"),
        pytest.param(b"\x80\x04\x95", "is not JSON", id="pickle"),
        pytest.param({}, "got 12 bytes of tensors, expected 0", id="no tensors"),
    ],
)
def test_header_at_odds_is_refused(path: Path, header: object, message: str) -> None:
    write(path, header)
    with pytest.raises(CheckpointError, match=message):
        read_header(path, CheckpointError)


@pytest.mark.parametrize("length", [10**3, 2**31, 2**63, 2**64 - 1])
def test_length_beyond_the_file_is_refused(path: Path, length: int) -> None:
    write(path, {"a": tensor()}, length=length)
    with pytest.raises(CheckpointError, match=f"a header length of {length}"):
        read_header(path, CheckpointError)


def test_length_within_a_sparse_file_is_limited(path: Path) -> None:
    write(path, {"a": tensor()}, length=2**31)
    with path.open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(CheckpointError, match="a header of at most 16777216"):
        read_header(path, CheckpointError)


def test_every_truncation_is_refused(path: Path) -> None:
    write(path, {"a": tensor()})
    whole = path.read_bytes()
    for kept in range(len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError):
            read_header(path, CheckpointError)
