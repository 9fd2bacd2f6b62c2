"""How the CPU twin is compiled: without the GIL, for a level of processors, and kept (see `_numba_cache`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast

import numba
from llvmlite import binding
from numba.core.registry import cpu_target

from fuserec.files import locked
from fuserec.kernels.search._numba_cache import CodeCache, CompiledFolders
from fuserec.kernels.search.cpu_levels import CpuLevel, level_for, level_named

_F = TypeVar("_F", bound=Callable[..., object])


def _settle_level() -> CpuLevel | None:
    """Let numba compile for the level of this processor, and return it; None where it compiles for something else.

    That is so where NUMBA_CPU_NAME or NUMBA_CPU_FEATURES say so, where this process has compiled something else before,
    and on processors below all levels.
    """
    config: Any = numba.config
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return level_named(config.CPU_NAME, config.CPU_FEATURES)
    if "_toplevel_target_context" in vars(cpu_target):
        return None
    host = binding.get_host_cpu_features()
    level = level_for(frozenset(name for name, is_there in host.items() if is_there))
    if level is not None:
        config.CPU_NAME, config.CPU_FEATURES = level.cpu, level.llvm_features
    return level


LEVEL: Final = _settle_level()
FOLDERS: Final = CompiledFolders("host" if LEVEL is None else LEVEL.name)


def jit(*, parallel: bool = False, fastmath: frozenset[str] = frozenset()) -> Callable[[_F], _F]:
    """Return the decorator for a compiled function."""

    def decorate(function: _F) -> _F:
        compiled: Any = numba.njit(nogil=True, parallel=parallel, fastmath=set(fastmath))(function)
        if hasattr(compiled, "_cache"):  # not so under NUMBA_DISABLE_JIT
            compiled._cache = CodeCache(function, FOLDERS)
        return cast("_F", compiled)

    return decorate


@contextlib.contextmanager
def compiled_once(function: object) -> Iterator[None]:
    """Hold a lock for as long as nothing of a function is kept, and none where something is.

    Of several processes that are started at once on a new machine, one then compiles it and the others load what it
    made, in place of all of them compiling the same.
    """
    cache = getattr(function, "_cache", None)
    if not isinstance(cache, CodeCache) or not cache.is_empty():
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # nothing can be kept: each compiles for itself, see `CodeCache`
            FOLDERS.make()
            stack.enter_context(locked(cache.folder / "compiling.lock"))
        yield
