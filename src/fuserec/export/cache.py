"""Engines that were built before, by what they were built from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fuserec.files import replacing_file

VARIABLE: Final = "FUSEREC_CACHE"
LARGEST_BYTES: Final = 2 * 2**30


def cache_folder() -> Path:
    """Return `$FUSEREC_CACHE`, else `fuserec` in the user's folder for caches."""
    if folder := os.environ.get(VARIABLE):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuserec"


def cached(build: Callable[[], bytes], *inputs: bytes | str) -> tuple[bytes, bool]:
    """Return what `build` returned for the same inputs before, or what it returns now.

    An entry carries its own hash, so that a damaged one is built again.

    Args:
        build: makes the bytes.
        inputs: all that they depend on.

    Returns:
        The bytes, and whether they were there.
    """
    digest = hashlib.sha256()
    for value in inputs:
        data = value if isinstance(value, bytes) else value.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    folder = cache_folder() / "engines"
    path = folder / digest.hexdigest()
    if (found := _read(path)) is not None:
        path.touch()  # the least recently used go first
        return found, True
    made = build()
    with replacing_file(path) as temporary:
        temporary.write_bytes(hashlib.sha256(made).digest() + made)
    _make_room(folder)
    return made, False


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def _make_room(folder: Path) -> None:
    """Remove what was not used for the longest time until the folder is small enough."""
    entries = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:
            continue  # another export made room, too
        entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= LARGEST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size
