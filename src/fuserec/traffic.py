"""Which version of a repository is served, and which other is tried beside it: `traffic.json` in its root.

    {"serve": 3, "experiment": {"kind": "shadow", "version": 4, "share": 0.1}}

`serve` pins a version; without it, or without the file, the newest is served. In an experiment of kind `shadow` the
other version answers a share of the users' calls as well, and nobody sees it; of kind `ab` it answers them in place of
the served one, and the answers say so by its number. The server looks at the file every second.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import BundleError
from fuserec.files import replacing_file
from fuserec.manifest import bundle_folder
from fuserec.records import from_json
from fuserec.untrusted.documents import read_json

FILE_NAME: Final = "traffic.json"
SHADOW: Final = "shadow"
AB: Final = "ab"
_MAX_BYTES: Final = 10_000


@dataclass(frozen=True)
class Experiment:
    """A version that is tried.

    Attributes:
        kind: `shadow` or `ab`.
        version: Number of the version.
        share: Of the users, above 0 and at most 1.

    Raises:
        ValueError: One of them is something else.
    """

    kind: str
    version: int
    share: float

    def __post_init__(self) -> None:
        if self.kind not in (SHADOW, AB):
            raise ValueError(f"kind came as {self.kind!r}, expected {SHADOW} or {AB}")
        if self.version < 1:
            raise ValueError(f"version came as {self.version}, expected 1 or more")
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"share came as {self.share}, expected above 0 and at most 1")

    def takes(self, user_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of (B,) users fall into the share; always the same for a user and a version.

        Their ids are mixed with the version by the finalizer of SplitMix64 (Steele, Lea and Flood, 2014), so that the
        users of one experiment are not those of the next. Callers without an id are left out.
        """
        mixed = user_ids.astype(np.uint64) + np.uint64(self.version * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
        taken: NDArray[np.bool_] = (mixed >> np.uint64(11)) * 2.0**-53 < self.share
        return taken & (user_ids >= 0)


@dataclass(frozen=True)
class Traffic:
    """Which versions answer; see the top of this module.

    Attributes:
        serve: The version that is served; None for the newest.
        experiment: Another that is tried; None for none.
    """

    serve: int | None = None
    experiment: Experiment | None = None

    def __post_init__(self) -> None:
        if self.serve is not None and self.serve < 1:
            raise ValueError(f"serve came as {self.serve}, expected 1 or more")

    @classmethod
    def read(cls, repository: Path) -> Traffic:
        """Read what a repository says; the newest alone where it says nothing.

        Raises:
            BundleError: The file is not what `write` writes.
        """
        path = repository / FILE_NAME
        if not path.exists():
            return cls()
        document = read_json(path, _MAX_BYTES, BundleError)
        try:
            return from_json(cls, document)
        except ValueError as error:
            raise BundleError(f"{path} does not say which version to serve ({error}); `fuserec traffic` does") from None

    def write(self, repository: Path) -> None:
        """Say so to the server of a repository, which follows within seconds."""
        with replacing_file(repository / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def clear(repository: Path) -> None:
        """Take the file away, so that the newest is served alone."""
        (repository / FILE_NAME).unlink(missing_ok=True)

    def bundle(self, repository: Path) -> Path:
        """Return the folder of the bundle that is served.

        Raises:
            BundleError: There is none, or not the pinned one.
        """
        return bundle_folder(repository, self.serve)

    @property
    def versions(self) -> set[int]:
        """The versions that are named, which nobody may remove."""
        named = {self.serve} if self.serve is not None else set()
        return named | ({self.experiment.version} if self.experiment else set())


def served_folder(repository: Path) -> Path:
    """Return the folder of the bundle that a repository serves: the pinned one, else the newest.

    Raises:
        BundleError: There is none, or not the pinned one, or what is pinned cannot be read.
    """
    return Traffic.read(repository).bundle(repository)
