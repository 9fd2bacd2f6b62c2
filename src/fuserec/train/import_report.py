"""What an import was told, and what it made of the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.train.encodings import check_encoding
from fuserec.train.times import check_format

# What is treated, and what that means to people; docs/your-own-data.md has the same names.
TREATMENTS: Final = {
    "rows_without_user": "rows without a user, left out",
    "rows_without_item": "rows without an item, left out",
    "rows_without_time": "rows without a time, left out",
    "rows_without_rating": "rows whose rating is missing or no number, left out",
    "rows_short": "lines with fewer fields than the header, whose last fields are taken as missing",
    "rows_blank": "empty lines, passed over",
    "rows_out_of_order": "rows earlier than the row before, so all are sorted by time",
    "duplicate_rows": "duplicate rows, left out",
    "decimal_commas": "ratings with a comma before the decimals, read as with a point",
    "ids_merged": "spellings of ids that stand for an id that is written otherwise elsewhere",
    "item_rows_without_id": "rows of items without an id, left out",
    "item_rows_repeated": "rows of items that came before, left out",
    "items_added": "items that the item file lacks, added with their id as title",
    "titles_missing": "items without a title, which becomes their id",
    "texts_cut": "texts cut to 4,000 characters",
    "titles_cut": "titles cut to 500 characters",
    "categories_repeated": "items with a category twice, which counts once",
    "columns_unusable": "columns of a type that holds no text, left out",
    "items_never_consumed": "items that nobody consumed, kept",
    "user_rows_repeated": "rows of users that came before, left out",
    "user_rows_unknown": "rows of users without an interaction, left out",
    "users_not_evaluated": "users with fewer than 3 interactions, learned from and not evaluated",
}


@dataclass(frozen=True)
class ImportOptions:
    """How files are read where they do not say it.

    Attributes:
        encoding: of CSV files, as Python calls it; None for UTF-8, or UTF-16 and UTF-32 where a file begins like it.
        time_format: of times: "iso", "seconds", ..., "excel", or a pattern; None to find out.
        fold_case: whether ids that differ in case only are the same.
        renumber: whether ids are numbered anew where the folder has their numbers.
        ids: folder whose numbers are kept; None for the folder that is written, if it has some.

    Raises:
        UsageError: Encoding or format is none.
    """

    encoding: str | None = None
    time_format: str | None = None
    fold_case: bool = False
    renumber: bool = False
    ids: Path | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None:
            object.__setattr__(self, "encoding", check_encoding(self.encoding))
        if self.time_format is not None:
            check_format(self.time_format)


@dataclass(frozen=True)
class Numbering:
    """What became of the ids of users, or of items.

    Attributes:
        ids: how many there are, those of the earlier import included.
        known: of these, with the number of the earlier import.
        numbered: of the others, with another number than the id itself.
        example: such an id; None where there is none.
        alike: ids that differ from another in case only.
    """

    ids: int
    known: int
    numbered: int
    example: str | None
    alike: int


@dataclass(frozen=True)
class Imported:
    """What was made of the files.

    Attributes:
        columns: by file ("interactions", "items", "users"), the column by the part that it was taken for.
        encodings: by file.
        times: how times were written.
        numbering: of "users" and "items".
        numbers_from: folder whose numbers were kept; None where ids were numbered anew.
        unusable: columns of a type that holds no text, as "items.cover (Binary)".
        rows: of the interactions file.
        interactions: rows that were kept.
        users: known by an interaction.
        items: of the catalogue, with an interaction or without.
        first: the earliest time, ISO 8601, UTC.
        last: the latest time.
        treated: how many of each of `TREATMENTS`.
    """

    columns: dict[str, dict[str, str]]
    encodings: dict[str, str]
    times: str
    numbering: dict[str, Numbering]
    numbers_from: str | None
    unusable: list[str]
    rows: int
    interactions: int
    users: int
    items: int
    first: str
    last: str
    treated: dict[str, int]
