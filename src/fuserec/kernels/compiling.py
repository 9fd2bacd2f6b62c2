"""Compile the CPU search before it is needed, for the levels of processors that it may meet."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.errors import FuserecError, UsageError
from fuserec.kernels.search.cpu_levels import LEVELS, CpuLevel

LEVEL_NAMES: Final = tuple(level.name for level in LEVELS)


@dataclass(frozen=True)
class Compiled:
    """The code of one level.

    Attributes:
        target_cpu: Name of the level.
        folder: Where it is.
        functions: How many had to be compiled; 0 where all of it was there.
        seconds: How long that took.
    """

    target_cpu: str
    folder: str
    functions: int
    seconds: float


def levels_named(names: Sequence[str]) -> list[CpuLevel]:
    """Return levels by their names, all of them where none is named.

    Raises:
        UsageError: A name is not that of a level.
    """
    by_name = {level.name: level for level in LEVELS}
    for name in names:
        if name not in by_name:
            raise UsageError(f"invalid target_cpu={name}: must be {', '.join(LEVEL_NAMES)}")
    return [by_name[name] for name in dict.fromkeys(names)] or list(LEVELS)


def compile_level(level: CpuLevel, folder: Path | None = None) -> Compiled:
    """Compile what a search calls for one level, which this machine need not be of; what is there already is kept.

    Args:
        level: What to compile for.
        folder: Where to keep it, in place of the installation's own folder.

    Raises:
        FuserecError: It cannot be written there, or the compiler failed.
    """
    from fuserec.kernels.search._numba_cache import FOLDER_VARIABLE, CompiledFolders, installed_folder

    base = installed_folder() if folder is None else folder.absolute()
    environment = os.environ | {
        FOLDER_VARIABLE: str(base),
        "NUMBA_CPU_NAME": level.cpu,
        "NUMBA_CPU_FEATURES": level.llvm_features,
    }
    folders = CompiledFolders(level.name, base)
    try:
        if folders.written != folders.installed:
            raise PermissionError(f"{base} is read-only")
        folders.make()
    except OSError as error:
        raise FuserecError(
            f"cannot write compiled code to {base} ({error}); run it as its owner, or give --to"
        ) from None
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fuserec.kernels.search._numba_ahead"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise FuserecError(f"compiling for {level.name} failed:\n{done.stderr.strip()}")
    return Compiled(level.name, str(folders.installed), int(done.stdout), round(time.monotonic() - began, 1))
