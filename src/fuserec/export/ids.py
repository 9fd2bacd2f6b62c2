"""Callers of a served repository go on with the ids they know: a new version must not give them another meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fuserec.errors import BundleError, ExportError
from fuserec.id_map import IdMaps, require_same_numbers
from fuserec.manifest import bundles
from fuserec.traffic import served_folder

REMEDY: Final = (
    "train on data that keeps the numbers (`fuserec data import --ids FOLDER`), or give --accept-new-ids where callers "
    "change theirs at the same moment"
)


def require_served_numbers(repository: Path, ids: IdMaps, name: str | Path) -> None:
    """Raise unless ids to be published have the numbers that they have in the served version, if there is one.

    Raises:
        ExportError: Ids disagree; the message says how many.
        BundleError: The served version cannot be read.
    """
    if not repository.is_dir() or not bundles(repository):
        return
    served = served_folder(repository)
    require_same_numbers(ids, name, IdMaps.read(served, BundleError), served, ExportError, REMEDY)
