"""Versions that go wrong, each in its way, put into a repository as an operator would."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fuserec.contract import MODELS
from fuserec.manifest import CODE_FILE, FileRecord, Manifest, bundles, version_folders

BROKEN: Final = b"raise RuntimeError('broken on purpose')\n"
HANGING: Final = b"""\
import time


class TritonPythonModel:
    def initialize(self, args):
        time.sleep(3600)

    def execute(self, requests):
        return []
"""


def put_version(
    repository: Path,
    *,
    files: dict[str, bytes] | None = None,
    damage: Callable[[Path], object] | None = None,
    of: int | None = None,
) -> int:
    """Put a copy of a version into a repository as its newest, the front door last and at once; return its number.

    Args:
        repository: A served one.
        files: Replaced files (`recommend/model.py`) with what they hold; the manifest vouches for them.
        damage: Done to the folder of the front door, which the manifest does not know of.
        of: The version that is copied; the oldest by default.
    """
    source = min(bundles(repository)) if of is None else of
    manifest = Manifest.read(bundles(repository)[source])
    version = 1 + max(number for model in MODELS for number in version_folders(repository / model))
    staged = repository / manifest.models[0] / f".staged-{version}"
    for model in manifest.models:
        shutil.copytree(repository / model / str(source), staged / model)
    records = dict(manifest.files)
    for name, content in (files or {}).items():
        (staged / name).write_bytes(content)
        records[name] = FileRecord.of(staged / name)
    dataclasses.replace(manifest, files=records).write(staged / manifest.models[0])
    if damage is not None:
        damage(staged / manifest.models[0])
    for model in reversed(manifest.models):
        (staged / model).rename(repository / model / str(version))
    staged.rmdir()
    return version


def code_of_front_door(repository: Path) -> str:
    """Return the name of the file that holds the code of the front door, as a manifest lists it."""
    return f"{next(iter(bundles(repository).values())).parent.name}/{CODE_FILE}"


def remove_version(repository: Path, version: int) -> None:
    """Take a version out of a repository, the front door first."""
    for model in MODELS:
        shutil.rmtree(repository / model / str(version), ignore_errors=True)
