"""How the CPU twin is compiled: without the GIL, and cached on disk, so that a process pays for it once per machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

_F = TypeVar("_F", bound=Callable[..., object])


def _stamp() -> tuple[tuple[str, int, int], ...]:
    """Return name, time and size of every source file of the CPU twin."""
    files = sorted(Path(__file__).parent.glob("_numba*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


_STAMP = _stamp()


def jit(*, parallel: bool = False, fastmath: frozenset[str] = frozenset()) -> Callable[[_F], _F]:
    """Return the decorator for a compiled function.

    Numba discards a cached function when the file that holds it has changed, and does not see that a function it calls
    in another file has. So the stamp that the cache compares is made to cover all files of the twin. That reaches into
    numba; where it has moved on, the cache falls back to watching one file a function.
    """

    def decorate(function: _F) -> _F:
        compiled = numba.njit(cache=True, nogil=True, parallel=parallel, fastmath=set(fastmath))(function)
        file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
        if file is not None and hasattr(file, "_source_stamp"):
            file._source_stamp = (file._source_stamp, _STAMP)
        return cast("_F", compiled)

    return decorate
