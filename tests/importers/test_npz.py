"""Archives that somebody else made, most of them with bad intentions."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fuserec.errors import CheckpointError
from fuserec.importers.npz import MAX_MEMBERS, read_npz


def npy(values: np.ndarray, **changes: object) -> bytes:
    """An .npy; `changes` are what its header says in place of the truth."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values) | changes)
    return file.getvalue() + values.tobytes()


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("values", [VALUES, np.asfortranarray(VALUES), VALUES.astype(">f8"), np.int64(3)])
def test_reads_what_numpy_writes(values: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=values, note="not asked for")
    assert np.array_equal(read_npz(tmp_path / "a.npz", ("x",))["x"], values)


def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**7))
    assert (tmp_path / "a.npz").stat().st_size < 10**5
    with pytest.raises(CheckpointError, match=r"x.npy is compressed, \d+ bytes for 80000128"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_a_header_that_claims_more_than_there_is_reserves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"x.npy": npy(VALUES, shape=(2**20, 2**20))})
    with pytest.raises(CheckpointError, match=rf"x claims {4 * 2**40} bytes"):
        read_npz(path, ("x",))


def test_a_member_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"x.npy": npy(VALUES)})
    content = path.read_bytes()
    size = struct.pack("<II", len(npy(VALUES)), len(npy(VALUES)))
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, struct.pack("<II", 2**31 - 1, 2**31 - 1)))
    with pytest.raises(CheckpointError, match="x.npy claims 2147483647 bytes; the whole file has"):
        read_npz(path, ("x",))


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(CheckpointError, match="x is of dtype object; expected numbers"):
        read_npz(tmp_path / "a.npz", ("x",))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        pytest.param({"y.npy": npy(VALUES)}, "holds no x; it holds y.npy", id="another-name"),
        pytest.param({"x.npy": b"no header"}, "no readable .npy header", id="no-npy"),
        pytest.param({"x.npy": npy(VALUES)[:-1]}, "x claims 24 bytes", id="truncated-array"),
        pytest.param({"x.npy": npy(VALUES, shape=(-2, -3))}, "x claims 24 bytes for (-2, -3)", id="negative-shape"),
        pytest.param({"x.npy": b"\x93NUMPY\x03\x00" + npy(VALUES)[8:]}, "version (3, 0)", id="later-version"),
        pytest.param({f"{n}.npy": b"" for n in range(MAX_MEMBERS + 1)}, "has 65 members", id="many-members"),
    ],
)
def test_what_is_no_such_archive(members: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        read_npz(write(tmp_path / "a.npz", members), ("x",))
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 100])
def test_what_is_no_zip(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected an .npz that numpy.savez wrote"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"x.npy": npy(VALUES)})
    content = bytearray(path.read_bytes())
    content[content.index(VALUES.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC"):
        read_npz(path, ("x",))
