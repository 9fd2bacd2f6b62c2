"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 16 * 2**20


def sha256(path: Path, between: Callable[[], object] | None = None) -> str:
    """Return the SHA-256 of a file as 64 hex digits.

    Args:
        path: The file.
        between: Called before each 16 MiB; what it raises ends the reading of a file that may be very large.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while True:
            if between is not None:
                between()
            if not (chunk := file.read(_CHUNK_BYTES)):
                return digest.hexdigest()
            digest.update(chunk)


def fsync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(folder: Path) -> None:
    """Wait until all files of a folder, and the folders in it, are on the disk."""
    for path in (*folder.rglob("*"), folder):
        fsync(path)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on a file and hold it; it ends with the process that holds it.

    The file and its folder are made where they are missing, and may be removed by whoever holds the lock.
    """
    fd = _lock(path)
    try:
        yield
    finally:
        os.close(fd)


def _lock(path: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass  # removed by whoever held the lock before
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Return whether somebody holds the lock on a file; False where there is no such file."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(fd)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp made it private
        fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the place of `path`, on error it is removed.

    A folder cannot be renamed over a full one, so an old `path` is moved aside first and put back should the
    rename fail: at every moment either the old or the new folder is there, whole.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    aside = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp made it private
        fsync_tree(temporary)
        if path.exists():
            move_folder(path, aside)
        try:
            temporary.rename(path)
        except OSError:
            if aside.exists():
                aside.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def move_folder(path: Path, target: Path) -> None:
    """Rename a folder to a name that is free, on the same file system.

    overlayfs renames no folder of a lower layer, such as one that a container's image brings (EXDEV): that one is
    copied whole before it is removed.
    """
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(path, target, symlinks=True)
        fsync_tree(target)
        try:
            shutil.rmtree(path)
        except OSError:
            shutil.copytree(target, path, symlinks=True, dirs_exist_ok=True)
            raise
