"""Which number stands for which id of the caller's: models and the service know int64 numbers alone.

    ids_users.parquet   user_id int64, original text; sorted by user_id, nothing twice
    ids_items.parquet   item_id int64, original text; likewise

A data folder that `fuserec data import` wrote has both, its checkpoints and their bundles carry copies. Where there is
none, ids are numbers already and stand for themselves.

Numbers of two maps may be exchanged if no id has another number in the other and no number another id: a later import
only adds. Equal maps have the same fingerprint, whatever wrote the files.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fuserec.untrusted.tables import read_table

if TYPE_CHECKING:
    import polars as pl  # imported where it is used: who only wants the names of the files does not wait for it

ORIGINAL: Final = "original"
ID_FILES: Final = {"users": "ids_users.parquet", "items": "ids_items.parquet"}
KEEP_NUMBERS: Final = (
    "expected data that keeps the numbers: `fuserec data import --ids FOLDER`, the folder or the checkpoint that has "
    "them, or without --ids into the folder of the earlier import"
)
_NUMBER: Final = {"users": "user_id", "items": "item_id"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdMap:
    """The numbers of users, or of items.

    Attributes:
        kind: "users" or "items".
        table: `user_id` or `item_id` int64, `original` str; no nulls, no value twice in either column; kept sorted by
            number.

    Raises:
        ValueError: It is not so.
    """

    kind: str
    table: pl.DataFrame

    def __post_init__(self) -> None:
        import polars as pl

        schema = {self.number: pl.Int64(), ORIGINAL: pl.String()}
        if dict(self.table.schema) != schema:
            raise ValueError(f"has columns {self.table.columns}; expected {self.number} int64, {ORIGINAL} text")
        for column in self.table:
            if repeated := self.table.height - column.n_unique():
                raise ValueError(f"has {repeated} values of {column.name} twice; expected each once")
            if column.null_count():
                raise ValueError(f"has {column.null_count()} nulls in {column.name}; expected none")
        object.__setattr__(self, "table", self.table.sort(self.number))

    @property
    def number(self) -> str:
        """The name of the column of numbers."""
        return _NUMBER[self.kind]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, 64 hex digits, of the map.

        Of the number of ids, the numbers, and the lengths of the ids in bytes of UTF-8, each as little-endian int64,
        then of the ids one after the other.
        """
        import numpy as np

        ids = self.table[ORIGINAL]
        digest = hashlib.sha256(np.array([self.table.height], dtype="<i8").tobytes())
        digest.update(self.table[self.number].to_numpy().astype("<i8").tobytes())
        digest.update(ids.str.len_bytes().to_numpy().astype("<i8").tobytes())
        for first in range(0, len(ids), 2**20):  # texts of a million ids at a time
            digest.update("".join(ids[first : first + 2**20]).encode())
        return digest.hexdigest()

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether every id is its number."""
        import polars as pl

        return bool((self.table[self.number].cast(pl.String) == self.table[ORIGINAL]).all())

    def disagreeing(self, other: IdMap) -> pl.DataFrame:
        """Return the ids that have another number in `other`, or whose number is another id's there.

        Returns:
            `original`, `here`: its number in this map; `there`: in the other one, null where it has none; the
            smallest number first.
        """
        import polars as pl

        here, there = (one.table.rename({one.number: side}) for one, side in ((self, "here"), (other, "there")))
        by_number = here.join(there, left_on="here", right_on="there", suffix="_there")
        moved = by_number.filter(pl.col(ORIGINAL) != pl.col(f"{ORIGINAL}_there")).select(ORIGINAL)
        by_id = here.join(there, on=ORIGINAL).filter(pl.col("here") != pl.col("there")).select(ORIGINAL)
        ids = pl.concat([moved, by_id]).unique()
        return ids.join(here, on=ORIGINAL).join(there, on=ORIGINAL, how="left").sort("here")

    def joined(self, other: IdMap) -> IdMap:
        """Return the ids of both, which must not disagree."""
        import polars as pl

        return IdMap(self.kind, pl.concat([self.table, other.table]).unique())


@dataclass(frozen=True)
class IdMaps:
    """The maps of a folder; None where it has none."""

    users: IdMap | None = None
    items: IdMap | None = None

    @classmethod
    def read(cls, folder: Path, error: type[ValueError]) -> IdMaps:
        """Read what there is of `ID_FILES`.

        Raises:
            error: A file is not such a map.
        """
        found = {kind: _read(kind, folder / name, error) for kind, name in ID_FILES.items()}
        return cls(**found)

    def write(self, folder: Path) -> list[str]:
        """Write the maps that there are into a folder; return the names of the files."""
        for one in self:
            one.table.write_parquet(folder / ID_FILES[one.kind])
        return [ID_FILES[one.kind] for one in self]

    def __iter__(self) -> Iterator[IdMap]:
        """Yield the maps that there are, users first."""
        return iter([one for one in (self.users, self.items) if one is not None])

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of each map, by kind."""
        return {one.kind: one.fingerprint for one in self}

    def joined(self, other: IdMaps) -> IdMaps:
        """Return the maps with the ids of both, which must not disagree."""
        pairs = {"users": (self.users, other.users), "items": (self.items, other.items)}
        return IdMaps(**{kind: a.joined(b) if a and b else a or b for kind, (a, b) in pairs.items()})


def _read(kind: str, path: Path, error: type[ValueError]) -> IdMap | None:
    if not path.is_file():
        return None
    import polars as pl

    table = read_table(path, error, columns={_NUMBER[kind]: pl.Int64(), ORIGINAL: pl.String()})
    try:
        return IdMap(kind, table)
    except ValueError as reason:
        raise error(f"{path} {reason}") from reason


def disagreements(a: IdMaps, a_name: str, b: IdMaps, b_name: str) -> list[str]:
    """Compare the maps of two folders.

    Returns:
        A sentence for each kind of id whose numbers must not be exchanged; it says how many ids disagree.
    """
    told = []
    for one, other in ((a.users, b.users), (a.items, b.items)):
        if one is None or other is None or one.fingerprint == other.fingerprint:
            continue
        differing = one.disagreeing(other)
        if differing.height:
            id_, here, there = differing.row(0)
            where = f"{there} in {b_name}" if there is not None else f"which is another's in {b_name}"
            told.append(
                f"{differing.height:,} of {one.table.height:,} {one.kind[:-1]} ids disagree, such as {id_!r}: "
                f"{here} in {a_name}, {where}"
            )
    return told


def require_same_numbers(
    a: IdMaps, a_name: str | Path, b: IdMaps, b_name: str | Path, error: type[Exception], remedy: str
) -> None:
    """Raise unless a number stands for the same user and the same item in two folders, as far as their maps tell.

    Where one has a map and the other has none, a warning says that it cannot be told.

    Raises:
        error: Ids disagree; the message says how many, and `remedy`.
    """
    told = disagreements(a, str(a_name), b, str(b_name))
    if told:
        raise error(f"{a_name} and {b_name} number their ids differently: {'; '.join(told)}; {remedy}")
    for one, other in ((a.users, b.users), (a.items, b.items)):
        if (one is None) != (other is None):
            has, lacks = (a_name, b_name) if other is None else (b_name, a_name)
            known = one or other
            assert known is not None
            if not known.is_identity:
                logger.warning("%s says which %s its numbers are and %s does not; taken to be the same numbers",
                               has, known.kind, lacks)  # fmt: skip
