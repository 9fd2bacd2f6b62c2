"""Versions of a served repository: put one in, go back to one, try one beside another.

The server is not called: it follows `traffic.json` and the versions that are there (see `fuserec.traffic`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fuserec.errors import BundleError, UsageError
from fuserec.export.ids import require_served_numbers
from fuserec.export.publishing import LOCK, publishing
from fuserec.files import locked
from fuserec.id_map import IdMaps
from fuserec.manifest import FILE_NAME, Manifest, bundle_folder, bundles
from fuserec.traffic import Experiment, Traffic, served_folder


def publish(
    source: Path,
    repository: Path,
    *,
    version: int | None = None,
    kind: str | None = None,
    share: float = 1.0,
    keep: int = 2,
    accept_new_ids: bool = False,
) -> int:
    """Copy a version of one repository into another as its newest, and have it served, or tried.

    Args:
        source: Repository that `fuserec export` wrote.
        repository: The one that is served.
        version: Which of the source; its newest by default.
        kind: `shadow` or `ab` to try it beside what is served now; None to serve it.
        share: Of the users that it answers, in an experiment.
        keep: How many good versions stay in `repository`, this one included.
        accept_new_ids: Whether ids may have other numbers than in the version that is served.

    Returns:
        Its number in `repository`.

    Raises:
        BundleError: The source is damaged, or the repository holds nothing that it could be tried beside.
        ExportError: `repository` is something else, or numbers its ids differently.
        UsageError: Both are the same folder.
    """
    if source.resolve() == repository.resolve():
        raise UsageError(f"{source} is the served repository itself; its versions are served with `fuserec traffic`")
    bundle = bundle_folder(source, version)
    manifest = Manifest.read(bundle)
    manifest.verify(source)
    if not accept_new_ids:
        require_served_numbers(repository, IdMaps.read(bundle, BundleError), bundle)
    if kind is not None:
        Experiment(kind, 1, share)  # says what is wrong with them before anything is done
        # Pinned before the new version appears, or the server would take it for the one to serve.
        served = int(served_folder(repository).name)
        _write(repository, Traffic(serve=served))
    with publishing(repository, manifest.models, keep=keep) as staging:
        for name in manifest.files:
            model, _, file = name.partition("/")
            target = staging.folder / model / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / manifest.path_of(name), target)
        shutil.copyfile(bundle / FILE_NAME, staging.bundle / FILE_NAME)
    if kind is not None:
        _write(repository, Traffic(served, Experiment(kind, staging.version, share)))
    else:
        # What was pinned, if anything was, is no longer what is wanted; nor is an experiment against it.
        _write(repository, Traffic())
    return staging.version


def serve(repository: Path, version: int | None) -> int:
    """Have a version served, None for the newest, and end an experiment; return its number.

    Raises:
        BundleError: There is no such version, or it is damaged.
    """
    bundle = bundle_folder(repository, version)
    Manifest.read(bundle).verify(repository)
    _write(repository, Traffic(serve=version))
    return int(bundle.name)


def roll_back(repository: Path) -> int:
    """Have the last good version served that is older than the one that is served now; return its number.

    Raises:
        BundleError: There is none.
    """
    served = int(served_folder(repository).name)
    older = [version for version in bundles(repository) if version < served]
    for version in reversed(older):
        try:
            return serve(repository, version)
        except BundleError:
            continue
    raise BundleError(f"{repository} has no good version older than {served}, which is served; nothing was changed")


def try_out(repository: Path, kind: str, version: int, share: float) -> int:
    """Try a version beside the one that is served, which is pinned; return the number of the latter.

    Raises:
        BundleError: There is no such version, or it is damaged.
        UsageError: It is the one that is served, or the share is not one.
    """
    try:
        experiment = Experiment(kind, version, share)
    except ValueError as error:
        raise UsageError(str(error)) from None
    Manifest.read(bundle_folder(repository, version)).verify(repository)
    served = int(served_folder(repository).name)
    if version == served:
        raise UsageError(f"version {version} is the one that is served; expected another")
    _write(repository, Traffic(served, experiment))
    return served


def stop_trying(repository: Path) -> int:
    """End an experiment; what was served goes on; return its number."""
    traffic = Traffic.read(repository)
    _write(repository, Traffic(traffic.serve))
    return int(traffic.bundle(repository).name)


def _write(repository: Path, traffic: Traffic) -> None:
    with locked(repository / LOCK):
        if traffic == Traffic():
            traffic.clear(repository)
        else:
            traffic.write(repository)
