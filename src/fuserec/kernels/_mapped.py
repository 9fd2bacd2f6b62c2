"""A file that is mapped, and whether it is still what was mapped.

A mapped page shows what is in the file now, private mappings included, for as long as nobody has written to it in
memory. An index that somebody edits in place, or copies over, would change its answers without a word. A copy in memory
would cost each process the size of the index, and pages are shared between processes that map. So the file is looked at
after each search, by its open descriptor: the kernel notes a change before the new bytes can be read.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fuserec.errors import BundleError
from fuserec.kernels._arrays import Array


class FileState(NamedTuple):
    """What the kernel says of a file that changes with its content; nothing can set the last back."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: Path | int) -> FileState:
        """Return that of a path or a descriptor."""
        stat = file.stat() if isinstance(file, Path) else os.fstat(file)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


class MappedFile:
    """A file mapped for reading. One that is replaced by another of its name stays mapped as it was.

    Attributes:
        path: Where it was.
        state: What it was when it was mapped.
        data: (bytes,) uint8, its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            self.state = FileState.of(self._descriptor)
            self.data: Array = np.memmap(file, np.uint8, mode="r").view(np.ndarray)
        self._links = os.fstat(self._descriptor).st_nlink

    def require_unchanged(self, since: FileState | None = None) -> None:
        """Raise where the content may differ from what was mapped, or from what was seen of the path before that.

        Raises:
            BundleError: It may.
        """
        stat = os.fstat(self._descriptor)
        if stat.st_ctime_ns != self.state.changed_ns:
            # A link more or less is noted in the same place: that of a version that is removed, or kept elsewhere.
            if stat.st_nlink != self._links and (stat.st_size, stat.st_mtime_ns) == self.state[2:4]:
                self.state, self._links = FileState.of(self._descriptor), stat.st_nlink
            else:
                raise BundleError(
                    f"{self.path} was changed on disk after it was opened: answers from it may be wrong, and none are "
                    "given; publish a new version in place of editing one, and start the server again"
                )
        if since is not None and since != self.state:
            raise BundleError(f"{self.path} was changed on disk while it was opened; open it again")
