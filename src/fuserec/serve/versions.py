"""The versions of a repository as one server sees them: which is wanted, which were good, which are whole.

A version is hashed once: as long as no file of it changes (size, times, inode), it is what it was. So a server that
died is back at once, however large its files are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

from fuserec import journal
from fuserec.errors import BundleError
from fuserec.manifest import CONFIG_FILE, Manifest, bundle_folder, bundles
from fuserec.traffic import Traffic, served_folder


class Versions:
    """The versions of a repository.

    Args:
        repository: Its folder.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._whole: dict[int, tuple[Manifest, Hashable]] = {}

    def wanted(self) -> int:
        """Return the version that the repository says is to be served.

        Raises:
            BundleError: It says none that is there.
        """
        return int(served_folder(self._repository).name)

    def verified(self, version: int, between: Callable[[], object] | None = None) -> Manifest:
        """Return the manifest of a version whose files are what was published.

        Raises:
            BundleError: They are not, or there is no such version.
        """
        bundle = bundle_folder(self._repository, version)
        if version in self._whole:
            manifest, before = self._whole[version]
            if before == _stamps(manifest.paths(self._repository)):
                # Shared with the other versions, so that a new one may have replaced them.
                manifest.verify_configs(self._repository)
                return manifest
            del self._whole[version]
        manifest = Manifest.read(bundle)
        before = _stamps(manifest.paths(self._repository))
        manifest.verify(self._repository, between)
        self._whole[version] = manifest, before
        return manifest

    def fingerprint(self, version: int) -> Hashable:
        """Return what changes when a file of a version does; also of one that is not whole."""
        try:
            bundle = bundle_folder(self._repository, version)
            known = self._whole.get(version)
            manifest = known[0] if known else Manifest.read(bundle)
            shared = [self._repository / model / CONFIG_FILE for model in manifest.models]
            return _stamps([*manifest.paths(self._repository), *shared])
        except (BundleError, OSError) as error:
            return str(error), _stamp(self._repository / "recommend" / str(version) / "manifest.json")

    def in_order(self, first: int | None) -> Iterator[int]:
        """Yield what to start with: `first`, then what was served before, the last first.

        Where nothing ever was, older versions follow; one that is only tried, or was refused, is not among them.
        """
        if first is not None:
            yield first
        found = journal.events(self._repository)
        there = bundles(self._repository)
        line = [version for version in reversed(journal.served_line(found)) if version in there]
        if not line and first is not None:
            unfit = journal.known_bad(found) | _tried(self._repository)
            line = [version for version in reversed(there) if version < first and version not in unfit]
        yield from (version for version in dict.fromkeys(line) if version != first)

    def first(self, *, cautiously: bool) -> int:
        """Return the version that a start tries first: the wanted one.

        Args:
            cautiously: Take the last good one where the wanted one has never answered yet: it is turned to later, and
                nobody waits for it.

        Raises:
            BundleError: There is none.
        """
        found = journal.events(self._repository)
        line = journal.served_line(found)
        there = bundles(self._repository)
        try:
            wanted = self.wanted()
        except BundleError:
            if cautiously and line and line[-1] in there:
                return line[-1]
            raise
        good = journal.known_good(found)
        if cautiously and wanted not in good and line and line[-1] in good and line[-1] in there:
            return line[-1]
        return wanted


def _tried(repository: Path) -> set[int]:
    try:
        experiment = Traffic.read(repository).experiment
    except BundleError:
        return set()
    return {experiment.version} if experiment else set()


def _stamps(paths: Iterable[Path]) -> Hashable:
    return tuple(map(_stamp, paths))


def _stamp(path: Path) -> Hashable:
    try:
        stat = path.stat()
    except OSError as error:
        return error.errno
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
