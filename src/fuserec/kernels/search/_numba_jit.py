"""How the CPU twin is compiled: without the GIL, and cached on disk, so that a process pays for it once per machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import numba

from fuserec.files import locked

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


@contextlib.contextmanager
def compiled_once(function: object) -> Iterator[None]:
    """Hold a lock for as long as a function is not in the cache, and none where it is.

    Of several processes that are started at once on a new machine, one then compiles it and the others load what it
    made, in place of all of them compiling the same. What is not known of another numba's cache costs only that.
    """
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    folder = getattr(file, "_cache_path", None)
    if file is None or folder is None or file._load_index():
        yield
        return
    with locked(Path(folder) / "compiling.lock"):
        yield
