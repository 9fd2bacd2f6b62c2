"""Where the inference server is, and what has to lie around it before it starts."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuserec.errors import LaunchError

BUNDLED_WHEEL = "nvidia-pytriton"
NEWEST_PYTHON = (3, 13)  # the first that the wheel has no python backend for


@dataclass(frozen=True)
class ServerBinary:
    """An inference server on this machine.

    Attributes:
        path: The `tritonserver` executable.
        wheel: Folder of the package that carries it; None for the vendor's own installation, which needs no help.
    """

    path: Path
    wheel: Path | None

    def prepare(self, scratch: Path) -> list[str]:
        """Lay out in `scratch` what the server needs and return the command line options that point there."""
        if self.wheel is None:
            return []
        # The wheel keeps one stub a Python version in a folder of its own; the server looks for it beside the backend.
        backend = scratch / "backends" / "python"
        backend.mkdir(parents=True)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self.wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
        shipped = self.wheel / "tritonserver" / "backends" / "python"
        for source in (
            stub,
            shipped / "libtriton_python.so",
            shipped / "triton_python_backend_utils.py",
        ):
            if not source.is_file():
                raise LaunchError(
                    f"{source} is missing: {BUNDLED_WHEEL} has no python backend for Python {version}; "
                    "use another Python or give --tritonserver PATH"
                )
            (backend / source.name).symlink_to(source)
        return [f"--backend-directory={backend.parent}"]

    def environment(self) -> dict[str, str]:
        """Return the environment for the server process."""
        environment = dict(os.environ)
        # In each process of a model the threads of OpenBLAS would spin while numpy is imported, and at times later:
        # a third of what a start costs. The search has threads of its own.
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        # The stub runs the first python3 on PATH: it must be the one that has fuserec.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        if self.wheel is not None:
            libraries = [str(self.wheel.parent / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
            if inherited := environment.get("LD_LIBRARY_PATH"):
                libraries.append(inherited)
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)
        return environment


def find_binary(given: Path | None = None) -> ServerBinary:
    """Find the server: the given executable, else the one in the installed wheel.

    Raises:
        LaunchError: There is none, the given file cannot be executed, or the numpy here is too new for the wheel's.
    """
    binary = _find(given)
    if binary.wheel is not None:
        check_numpy(np.__version__)
    return binary


def check_numpy(version: str) -> None:
    """Refuse a numpy that the python backend of the bundled server misreads.

    It was built against numpy 1.x and reads the size of an element where numpy 2 has something else. Seen with 2.5:
    every element of an input equals the first one, outputs are empty, and an input of strings ends the process. DLPack
    mends numbers but not strings, so there is no half way.

    Raises:
        LaunchError: It is numpy 2 or later.
    """
    if int(version.partition(".")[0]) >= 2:
        raise LaunchError(
            f"numpy {version} is installed, and {BUNDLED_WHEEL} misreads the arrays of numpy 2: pip install 'numpy<2' "
            "in the environment that serves, or give --tritonserver PATH"
        )


def _find(given: Path | None) -> ServerBinary:
    if given is not None:
        if not given.is_file() or not os.access(given, os.X_OK):
            raise LaunchError(f"{given} is not an executable file; expected the path of a tritonserver binary")
        wheel = given.parents[2] if given.parents[1].name == "tritonserver" else None
        return ServerBinary(given, wheel if wheel and wheel.name == "pytriton" else None)
    spec = importlib.util.find_spec("pytriton")
    locations = list(spec.submodule_search_locations or []) if spec else []
    for wheel in map(Path, locations):
        path = wheel / "tritonserver" / "bin" / "tritonserver"
        if path.is_file():
            return ServerBinary(path, wheel)
    if sys.version_info >= NEWEST_PYTHON:
        raise LaunchError(
            f"no tritonserver found, and {BUNDLED_WHEEL} has none for Python {sys.version_info.major}."
            f"{sys.version_info.minor}: use Python 3.11 or 3.12, or give --tritonserver PATH"
        )
    raise LaunchError("no tritonserver found: pip install 'fuserec[serve]' brings one, or give --tritonserver PATH")
