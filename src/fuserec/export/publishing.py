"""Publishing: a version appears in a repository whole or not at all, and an old one stays until a new one is there.

A version is put in place by renames, stage by stage, the front door with its manifest last: from then on it is the
newest. Whoever publishes holds a lock meanwhile, so that two exports at once become two versions. An export that is
killed loses its locks; what it left is no version to anybody and is removed by the next one.

    REPOSITORY/
      .fuserec.lock              held for the moments of a change
      recommend/.staging-XXXX/   an export under way, with a lock of its own; the server passes over such names
      recommend/4/  encode/4/    the last good version
      recommend/5/  encode/5/    the newest
"""

from __future__ import annotations

import contextlib
import errno
import importlib.resources
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec import journal
from fuserec.contract import MODELS
from fuserec.errors import BundleError, ExportError
from fuserec.files import fsync, fsync_tree, is_locked, locked, move_folder, replacing_file
from fuserec.manifest import CODE_FILE, CONFIG_FILE, FILE_NAME, FileRecord, Manifest, bundles, version_folders
from fuserec.serve.settings import ServingConfig
from fuserec.traffic import Traffic

LOCK: Final = ".fuserec.lock"
_STAGING: Final = ".staging-"
_HELD: Final = "lock"
# The last ones of file systems that know no locks, such as some network mounts.
_DISK_ERRORS: Final = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.ENOSYS,
)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def disk_errors(repository: Path, outcome: str = "no version was published") -> Iterator[None]:
    """Turn the faults of a disk into an `ExportError` of one line, which ends in what came of it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise ExportError(f"cannot write to {repository}: {error.strerror}; {outcome}") from None


@dataclass
class Staging:
    """A version that is being written.

    Attributes:
        folder: one folder a model, the files of each as they will lie in its version folder.
        models: the front door first.
        version: its number; 0 until it is published.
    """

    folder: Path
    models: tuple[str, ...]
    version: int = 0

    @property
    def bundle(self) -> Path:
        """The folder of the front door, where the bundle is to be written, and its manifest last."""
        return self.folder / self.models[0]

    def files(self) -> dict[str, FileRecord]:
        """Measure what has been written so far, named as the manifest lists it."""
        found = [path for model in self.models for path in sorted((self.folder / model).rglob("*"))]
        return {path.relative_to(self.folder).as_posix(): FileRecord.of(path) for path in found if path.is_file()}


@contextlib.contextmanager
def publishing(repository: Path, models: Sequence[str], *, keep: int = 2) -> Iterator[Staging]:
    """Yield a folder to write a version into; on success it becomes the newest one, on error it is removed.

    Args:
        repository: Folder to publish in; one that exists must be empty or hold earlier exports.
        models: What is served, the front door first.
        keep: How many good versions stay, the new one included. What is older goes; a version that does not verify,
            or that a server refused, is not counted. What is served, and what was served before, stays in any case.

    Raises:
        ExportError: `repository` is something else, or cannot be written to; it is as it was.
    """
    if keep < 1:
        raise ValueError(f"keep came as {keep}, expected at least 1")
    _refuse_foreign(repository)
    is_new = not repository.exists()
    with contextlib.ExitStack() as held:
        held.enter_context(disk_errors(repository))
        with locked(repository / LOCK):
            _remove_leftovers(repository)
            folder = _make_staging(repository, models)
            held.enter_context(locked(folder / _HELD))
        try:
            staging = Staging(folder, tuple(models))
            yield staging
            if not (staging.bundle / FILE_NAME).is_file():
                raise ValueError(f"{FILE_NAME} was not written; a version without one cannot be published")
            fsync_tree(folder)
            with locked(repository / LOCK):
                staging.version = _put_in_place(repository, staging)
                _retire_old(repository, keep, trash=folder)
        finally:
            with locked(repository / LOCK):
                shutil.rmtree(folder)
                _remove_leftovers(repository)
                _remove_empty(repository, is_new)


def _refuse_foreign(repository: Path) -> None:
    """Raise unless `repository` may be published in: it does not exist, is empty, or was written by an export."""
    if not repository.exists():
        return
    if not repository.is_dir():
        raise ExportError(f"{repository} is a file; expected a folder to write, or a name that is free")
    if any(repository.iterdir()) and not (repository / LOCK).is_file() and not bundles(repository):
        raise ExportError(
            f"{repository} is not empty and was not written by `fuserec export`; give another --repository"
        )


def _make_staging(repository: Path, models: Sequence[str]) -> Path:
    """Make a folder with the code and configuration of each model, on the file system that it is renamed on."""
    (repository / models[0]).mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=repository / models[0]))
    templates = importlib.resources.files("fuserec") / "model_repository"
    for model in models:
        (folder / model).mkdir()
        (folder / model / CODE_FILE).write_bytes((templates / model / "1" / CODE_FILE).read_bytes())
        config = ServingConfig().complete((templates / model / CONFIG_FILE).read_text(), model, models)
        (folder / model / CONFIG_FILE).write_text(config)
    return folder


def _put_in_place(repository: Path, staging: Staging) -> int:
    numbers = [version for model in MODELS for version in version_folders(repository / model)]
    version = max(numbers, default=0) + 1
    for model in reversed(staging.models):
        target = repository / model
        target.mkdir(exist_ok=True)
        if not (target / CONFIG_FILE).exists():
            _copy(staging.folder / model / CONFIG_FILE, target / CONFIG_FILE)
        (staging.folder / model).rename(target / str(version))
        fsync(target)
    fsync(repository)
    _put_configs(repository, version)
    return version


def _put_configs(repository: Path, version: int) -> None:
    """Let the server read the configurations of a version that is in place; `Manifest.verify` builds on that order."""
    for model in MODELS:
        source, target = repository / model / str(version) / CONFIG_FILE, repository / model / CONFIG_FILE
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with replacing_file(target) as temporary:
        temporary.write_bytes(source.read_bytes())


def _retire_old(repository: Path, keep: int, trash: Path) -> None:
    """Take all versions away that are older than the newest `keep` good ones; the newest is taken to be good.

    What `traffic.json` names stays, and what is served, and what was served before it, however old.
    """
    good = 0
    found = bundles(repository)
    try:
        held = Traffic.read(repository).versions | journal.protected(repository)
    except BundleError as error:
        logger.warning("no old version is removed: %s", error)
        return
    refused = journal.known_bad(journal.events(repository))
    for version in reversed(found):
        if good == keep:
            if version in held:
                continue
            # The front door first: without it, the rest is a leftover and no version any more.
            doors = sorted(MODELS, key=lambda model: repository / model != found[version].parent)
            for path in (repository / model / str(version) for model in doors):
                if path.is_dir():
                    move_folder(path, trash / f"{path.parent.name}.{version}")
        elif version == max(found) or (version not in refused and _is_good(repository, found[version])):
            good += 1


def _is_good(repository: Path, bundle: Path) -> bool:
    try:
        Manifest.read(bundle).verify(repository)
    except BundleError:
        return False
    return True


def _remove_leftovers(repository: Path) -> None:
    """Remove what broken-off exports left, and finish what the last of them began."""
    for folder in repository.glob(f"*/{_STAGING}*"):
        if not is_locked(folder / _HELD):
            shutil.rmtree(folder)
    whole = bundles(repository)
    for model in MODELS:
        for version, folder in version_folders(repository / model).items():
            if version not in whole:
                shutil.rmtree(folder)
        for temporary in (repository / model).glob(f".{CONFIG_FILE}.*"):
            temporary.unlink()
    if whole:
        _put_configs(repository, max(whole))


def _remove_empty(repository: Path, is_new: bool) -> None:
    """Remove the models that have no version, and a repository that was made in vain."""
    for model in (repository / name for name in MODELS):
        if model.is_dir() and not version_folders(model):
            (model / CONFIG_FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another export is being written in it
                model.rmdir()
    if [path.name for path in repository.iterdir()] == [LOCK]:
        (repository / LOCK).unlink()
        if is_new:
            with contextlib.suppress(OSError):  # another export has just begun
                repository.rmdir()
