"""Where compiled code is kept, and when it is the code of these sources.

A compiled function holds the code of all functions that it calls and the values of all constants that it reads, in
whatever files they are; numba looks at one file alone. So what is kept stands in a folder whose name has a hash over
the content of every file that can be in it, the versions of Python, numba and llvmlite, and the level of the processor
(`cpu_levels`). Times of files do not matter: a copied or unpacked installation finds what was compiled elsewhere.

    installed   beside this file, or in the folder that FUSEREC_COMPILED names; it may be read-only and shared: a layer
                of an image that `fuserec compile` has filled
    own         where `installed` cannot be written to: in NUMBA_CACHE_DIR, or the user's cache folder

What is in neither is compiled, and kept in `installed` where it can be, else in `own`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator

logger = logging.getLogger(__name__)

FOLDER_VARIABLE: Final = "FUSEREC_COMPILED"
_PACKAGE: Final = Path(__file__).parents[2]
# Compiled by Triton for a GPU, not by numba: an edit there changes nothing here.
_OTHERS: Final = ("_cuda", "_kernel", "gpu_")
_STAMP_DIGITS: Final = 16


def sources(package: Path = _PACKAGE) -> list[Path]:
    """Return the files whose functions or constants can be in compiled code; a test holds them against the imports."""
    kernels = package / "kernels"
    found = [package / "contract.py", *kernels.glob("*.py"), *(kernels / "search").glob("*.py")]
    return sorted(path for path in found if not path.name.startswith(_OTHERS))


def stamp(package: Path = _PACKAGE) -> str:
    """Return a hash over the names and the content of `sources`."""
    total = hashlib.sha256()
    for path in sources(package):
        total.update(f"{path.relative_to(package)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:_STAMP_DIGITS]


def folder_name(level: str) -> str:
    """Return the name of the folder for what is compiled for a level from the sources as they are."""
    return f"{_prefix(level)}{stamp()}"


def _prefix(level: str) -> str:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return f"{python}-numba{version('numba')}-llvmlite{version('llvmlite')}-{level}-"


def installed_folder() -> Path:
    """Return where an installation keeps what is compiled, a folder in it for each level."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).absolute() if given else Path(__file__).parent / "__pycache__"


def own_folder() -> Path:
    """Return where a user keeps what is compiled if the installation is not theirs to write to."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuserec"


class CompiledFolders:
    """The folders of one level.

    Args:
        level: Its name; "host" for code that is for one model of processor.
        installed: The installation's folder, unless it is the usual one.
    """

    def __init__(self, level: str, installed: Path | None = None) -> None:
        self._level = level
        name = folder_name(level)
        self.installed = (installed or installed_folder()) / name
        at = self.installed
        while not at.exists():
            at = at.parent
        self.written = self.installed if os.access(at, os.W_OK) else own_folder() / name

    def make(self) -> None:
        """Make the folder that is written to; those of older sources beside it go."""
        if self.written.is_dir():
            return
        self.written.mkdir(parents=True, exist_ok=True)
        if self.written != self.installed:
            return  # other installations may share it
        for old in self.written.parent.glob(f"{_prefix(self._level)}*"):
            if old != self.written:
                shutil.rmtree(old, ignore_errors=True)


class CodeCache(FunctionCache):
    """Numba's cache of a function, in `CompiledFolders`.

    A cache that cannot be written to, or whose files are damaged, costs a compilation and is named in the log.
    """

    def __init__(self, function: Callable[..., object], folders: CompiledFolders) -> None:
        class Locator(_CacheLocator):
            def get_cache_path(self) -> str:
                return str(folders.written)

            def ensure_cache_path(self) -> None:
                folders.make()

            def get_source_stamp(self) -> str:
                return folders.written.name

            def get_disambiguator(self) -> str:
                return str(function.__code__.co_firstlineno)

            @classmethod
            def from_function(cls, _function: object, _file: str) -> Locator:
                return cls()

        class Impl(CompileResultCacheImpl):
            _locator_classes = [Locator]  # type: ignore[list-item]  # noqa: RUF012  (as numba has it)

        self._impl_class = Impl
        super().__init__(function)  # type: ignore[no-untyped-call]  # numba has few types, here and below
        # What is read, in this order.
        self._files = [self._cache_file]
        if folders.installed != folders.written:
            name = self._impl.filename_base
            at = str(folders.installed)
            shipped = IndexDataCacheFile(at, name, folders.installed.name)  # type: ignore[no-untyped-call]
            self._files.insert(0, shipped)
        self.folder = folders.written

    def is_empty(self) -> bool:
        """Return whether nothing is kept of the function."""
        return not any(self._index(file) for file in self._files)

    def _index(self, file: IndexDataCacheFile) -> dict[Any, str]:
        try:
            index: dict[Any, str] = file._load_index()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever is in a damaged file
            logger.warning("%s is damaged (%s) and made anew", file._index_path, error)
            return {}
        return index

    def _load_overload(self, sig: Any, target_context: Any) -> Any:
        if not self._enabled:
            return None
        key = self._index_key(sig, target_context.codegen())  # type: ignore[no-untyped-call]
        for file in self._files:
            if key not in self._index(file):
                continue
            try:
                data = file.load(key)  # type: ignore[no-untyped-call]
                if data is not None:
                    return self._impl.rebuild(target_context, data)
            except Exception as error:  # whatever is in a damaged file
                logger.warning("compiled code of %s in %s is damaged (%s)", self._name, file._cache_path, error)
        return None

    def _save_overload(self, sig: Any, data: Any) -> None:
        try:
            if not self._index(self._cache_file):
                self._impl.locator.ensure_cache_path()
                Path(self._cache_file._index_path).unlink(missing_ok=True)  # damaged, if it is there
            super()._save_overload(sig, data)  # type: ignore[no-untyped-call]
        except OSError as error:
            logger.warning("compiled code cannot be kept (%s); every start will compile", error)
