"""Arrays out of an .npz of anybody's making: every size is known before anything is read, and nothing is unpickled.

numpy writes such files uncompressed (`savez`), so a member that is larger than what the file has of it is a bomb.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fuserec.errors import CheckpointError

MAX_MEMBERS: Final = 64
_HEADERS: Final[dict[tuple[int, int], Any]] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: Path, wanted: Collection[str]) -> dict[str, NDArray[Any]]:
    """Read the named arrays of numbers; others are not looked at.

    Raises:
        CheckpointError: if the file is no such archive, is compressed, lacks one of them, or one is not what its sizes
            say.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if len(archive.infolist()) > MAX_MEMBERS:
                raise CheckpointError(f"{path} has {len(archive.infolist())} members; expected at most {MAX_MEMBERS}")
            arrays = {}
            for name in wanted:
                member = members.get(f"{name}.npy")
                if member is None:
                    raise CheckpointError(f"{path} holds no {name}; it holds {', '.join(members)}")
                _check_stored(path, member)
                with archive.open(member) as stream:
                    arrays[name] = _read_array(f"{path}: {name}", stream, member.file_size)
            return arrays
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected an .npz that numpy.savez wrote") from error


def _check_stored(path: Path, member: zipfile.ZipInfo) -> None:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise CheckpointError(
            f"{path}: {member.filename} is compressed, {member.compress_size} bytes for {member.file_size}; "
            "expected none to be, as numpy.savez writes them"
        )
    if member.file_size > path.stat().st_size:
        raise CheckpointError(
            f"{path}: {member.filename} claims {member.file_size} bytes; the whole file has {path.stat().st_size}"
        )


def _read_array(where: str, stream: IO[bytes], size: int) -> NDArray[Any]:
    """Read one .npy of `size` bytes: the header first, as numpy would reserve whatever that claims."""
    try:
        version = npy.read_magic(stream)  # type: ignore[no-untyped-call]
        if version not in _HEADERS:
            raise CheckpointError(f"{where} is of .npy version {version}; expected 1.0 or 2.0")
        shape, is_fortran, dtype = _HEADERS[version](stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{where} has no readable .npy header ({error})") from error
    if dtype.kind not in "fiub":
        raise CheckpointError(f"{where} is of dtype {dtype}; expected numbers")
    if any(length < 0 for length in shape) or stream.tell() + math.prod(shape) * dtype.itemsize != size:
        raise CheckpointError(
            f"{where} claims {math.prod(shape) * dtype.itemsize} bytes for {shape} {dtype}; it has {size} with header"
        )
    flat = np.frombuffer(stream.read(), dtype=dtype)
    return flat.reshape(shape, order="F" if is_fortran else "C")
