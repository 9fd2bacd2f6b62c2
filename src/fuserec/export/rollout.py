"""Versions of a served repository: put one in, go back to one, try one beside another.

The server is not called: it follows `traffic.json` and the versions that are there (see `fuserec.traffic`). What is
asked here is written into the journal, and so is what the servers made of it (see `fuserec.journal`).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from fuserec import journal
from fuserec.errors import BundleError, UsageError
from fuserec.export.ids import require_served_numbers
from fuserec.export.publishing import LOCK, disk_errors, publishing
from fuserec.files import locked
from fuserec.id_map import IdMaps
from fuserec.manifest import FILE_NAME, Manifest, bundle_folder, bundles
from fuserec.traffic import Experiment, Traffic, served_folder

logger = logging.getLogger(__name__)


def publish(
    source: Path,
    repository: Path,
    *,
    version: int | None = None,
    kind: str | None = None,
    share: float = 1.0,
    keep: int = 2,
    force: bool = False,
    accept_new_ids: bool = False,
) -> int:
    """Copy a version of one repository into another as its newest, and have it served, or tried.

    A version that the other repository holds already, file by file, is not copied again.

    Args:
        source: Repository that `fuserec export` wrote.
        repository: The one that is served.
        version: Which of the source; its newest by default.
        kind: `shadow` or `ab` to try it beside what is served now; None to serve it.
        share: Of the users that it answers, in an experiment.
        keep: How many good versions stay in `repository`, this one included.
        force: Copy it all the same, as another version.
        accept_new_ids: Whether ids may have other numbers than in the version that is served.

    Returns:
        Its number in `repository`.

    Raises:
        BundleError: The source is damaged, or the repository holds nothing that it could be tried beside.
        ExportError: `repository` is something else, numbers its ids differently, or cannot be written to.
        UsageError: Both are the same folder, or the same version would be tried beside itself.
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
    if not force and (same := same_content(repository, manifest)) is not None:
        if kind is not None:
            try_out(repository, kind, same, share)
        else:
            _serve_existing(repository, same)
        return same
    if kind is not None:
        # Pinned before the new version appears, or the server would take it for the one to serve.
        served = int(served_folder(repository).name)
        with disk_errors(repository):
            _write(repository, Traffic(serve=served))
    before = _wanted(repository)
    with publishing(repository, manifest.models, keep=keep) as staging:
        for name in manifest.files:
            model, _, file = name.partition("/")
            target = staging.folder / model / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / manifest.path_of(name), target)
        shutil.copyfile(bundle / FILE_NAME, staging.bundle / FILE_NAME)
    _ask(repository, staging.version, kind or journal.PUBLISH, before)
    with disk_errors(repository, f"version {staging.version} was published, what is served was not changed"):
        if kind is not None:
            _write(repository, Traffic(served, Experiment(kind, staging.version, share)))
        else:
            # What was pinned, if anything was, is no longer what is wanted; nor is an experiment against it.
            _write(repository, Traffic())
    return staging.version


def same_content(repository: Path, manifest: Manifest) -> int | None:
    """Return the newest version of a repository that holds what a manifest lists, and is whole; None where none is."""
    if not repository.is_dir():
        return None
    refused = journal.known_bad(journal.events(repository))
    for version, bundle in reversed(bundles(repository).items()):
        try:
            other = Manifest.read(bundle)
            if version not in refused and (other.models, other.files) == (manifest.models, manifest.files):
                other.verify(repository)
                return version
        except BundleError:
            continue
    return None


def _serve_existing(repository: Path, version: int) -> None:
    before = _wanted(repository)
    _ask(repository, version, journal.PUBLISH, before)
    with disk_errors(repository, "nothing was changed"):
        _write(repository, Traffic() if version == max(bundles(repository)) else Traffic(serve=version))


def serve(repository: Path, version: int | None) -> int:
    """Have a version served, or None for the newest, and end an experiment; return its number.

    Raises:
        BundleError: There is no such version, or it is damaged.
        ExportError: The repository cannot be written to.
    """
    return _serve(repository, version, journal.SERVE)


def _serve(repository: Path, version: int | None, why: str) -> int:
    bundle = bundle_folder(repository, version)
    Manifest.read(bundle).verify(repository)
    before = _wanted(repository)
    with disk_errors(repository, "nothing was changed"):
        _write(repository, Traffic(serve=version))
    _ask(repository, int(bundle.name), why, before)
    return int(bundle.name)


def roll_back(repository: Path) -> int:
    """Have served what was served last before the version that is wanted now; return its number.

    It goes back along the journal: to what still answers where the wanted version was refused, else to what answered
    before it. A version that was never served, such as one that was only tried, is not gone back to.

    Raises:
        BundleError: There is none, or none that is whole; nothing was changed.
        ExportError: The repository cannot be written to; nothing was changed.
    """
    wanted = _wanted(repository)
    there = bundles(repository)
    line = [version for version in journal.served_line(journal.events(repository)) if version in there]
    if wanted in line:
        line = line[: len(line) - line[::-1].index(wanted)]
    damaged = []
    for version in (version for version in reversed(line) if version != wanted):
        try:
            return _serve(repository, version, journal.ROLLBACK)
        except BundleError as error:
            damaged.append(str(error))
    others = ", ".join(str(version) for version in there if version != wanted) or "none"
    raise BundleError(
        damaged[0]
        if damaged
        else f"{repository} has no version that was served before {wanted}, which is wanted now; nothing was changed. "
        f"`fuserec traffic --serve N` serves another one (there is {others})"
    )


def try_out(repository: Path, kind: str, version: int, share: float) -> int:
    """Try a version beside the one that is served, which is pinned; return the number of the latter.

    Raises:
        BundleError: There is no such version, or it is damaged.
        ExportError: The repository cannot be written to.
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
    with disk_errors(repository, "nothing was changed"):
        _write(repository, Traffic(served, experiment))
    _ask(repository, version, kind, served)
    return served


def stop_trying(repository: Path) -> int:
    """End an experiment; what was served goes on; return its number."""
    traffic = Traffic.read(repository)
    with disk_errors(repository, "nothing was changed"):
        _write(repository, Traffic(traffic.serve))
    return int(traffic.bundle(repository).name)


def _wanted(repository: Path) -> int | None:
    """Return the version that a repository says is to be served; None where it says none that is there."""
    try:
        return int(served_folder(repository).name)
    except BundleError:
        return None


def _ask(repository: Path, version: int, why: str, before: int | None) -> None:
    """Write down what is asked for; where nothing is written yet, first what was served until then."""
    try:
        if before not in (None, version) and not journal.events(repository):
            journal.record(repository, journal.ASKED, before, journal.SERVE)
        journal.record(repository, journal.ASKED, version, why)
    except OSError as error:
        logger.warning("the journal of %s cannot be written (%s): a rollback will not know", repository, error.strerror)


def _write(repository: Path, traffic: Traffic) -> None:
    with locked(repository / LOCK):
        if traffic == Traffic():
            traffic.clear(repository)
        else:
            traffic.write(repository)
