"""A data folder: who consumed what and when, and what the items are.

    interactions.parquet or .csv   user_id int64, item_id int64, timestamp int64 (seconds), optional rating float32
    items.parquet or .csv          item_id int64, title, optional genres (list; in CSV "Drama|War"), year int32, text
    users.parquet or .csv          optional: user_id int64 and any columns of categories, to compare groups of users
    ids_users, ids_items.parquet   optional: whose numbers these are, see `fuserec.id_map`

Rows of equal time keep the order of the file, so the order of the rows matters. docs/your-own-data.md says what is
done about bad data.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.id_map import ID_FILES, IdMaps
from fuserec.train.tables import Column, find_table, read_table

# More than the longest encoders read; titles are shown in one line.
MAX_TEXT_CHARS: Final = 4_000
MAX_TITLE_CHARS: Final = 500
# Seconds since 1970: what is later is milliseconds, or nonsense.
LATEST_TIMESTAMP: Final = 4_102_444_800  # 2100-01-01
UNKNOWN_CATEGORY: Final = "unknown"

INTERACTION_COLUMNS: Final = {
    "user_id": Column(pl.Int64()),
    "item_id": Column(pl.Int64()),
    "timestamp": Column(pl.Int64()),
    "rating": Column(pl.Float32(), required=False),
}
ITEM_COLUMNS: Final = {
    "item_id": Column(pl.Int64()),
    "title": Column(pl.String(), max_chars=MAX_TITLE_CHARS),
    "genres": Column(pl.List(pl.String), required=False, nullable=True),
    "year": Column(pl.Int32(), required=False, nullable=True),
    "text": Column(pl.String(), required=False, nullable=True, max_chars=MAX_TEXT_CHARS),
}
USER_COLUMNS: Final = {"user_id": Column(pl.Int64())}
# What `fuserec data` writes, and so may replace.
DATA_FILES: Final = frozenset(
    [f"{name}.{kind}" for name in ("interactions", "items", "users") for kind in ("parquet", "csv")]
    + [*ID_FILES.values(), "source.json"]
)
# One item to learn from, one to validate on, one to test on.
MIN_INTERACTIONS: Final = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """Interactions and items that fit each other.

    Attributes:
        interactions: user_id, item_id, timestamp int64, rating float32 where there are ratings; file order. A rating
            is null only where `train.start.continue_data` could not know it.
        items: item_id int64, title str, genres list[str], year int32 (nullable), text str where there are texts;
            sorted by item_id.
        users: user_id int64 and columns of categories, str without nulls; sorted by user_id. None where nothing is
            known of the users. Not every user of the interactions need be there.
        ids: which original ids the numbers stand for, where the folder says.

    Raises:
        DataError: if ids are negative or repeated, a time or a rating makes no sense, an interaction names an unknown
            item, or no user has enough interactions to be evaluated.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame | None = None
    ids: IdMaps = IdMaps()

    def __post_init__(self) -> None:
        _check_ids("interactions", self.interactions, "user_id")
        _check_ids("interactions", self.interactions, "item_id")
        _check_ids("items", self.items, "item_id")
        _check_unique("items", self.items, "item_id")
        if self.items.height < 2:
            raise DataError("items: only one item; expected at least two, as there is nothing to rank")
        if self.users is not None:
            _check_ids("users", self.users, "user_id")
            _check_unique("users", self.users, "user_id")
        _check_items_known(self.interactions, self.items)
        _check_times(self.interactions)
        _check_ratings(self.interactions)
        _check_evaluable(self.interactions)


def read_folder(path: Path) -> DataSet:
    """Read a data folder.

    Exact duplicates among the interactions are dropped, and counted in the log.

    Raises:
        DataError: if the folder or a file is missing, a table cannot be read as described above, or the tables do not
            fit each other; the message says what was found and what was expected.
    """
    interactions, items = read_tables(path)
    dataset = DataSet(interactions, items, _read_users(Path(path)), IdMaps.read(Path(path), DataError))
    if interactions["user_id"].n_unique() == 1:
        logger.warning("%s: only one user; what is scored on one user says nothing", path)
    return dataset


def read_tables(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the interactions and the items of a data folder, each as in `DataSet`, without comparing the two.

    Raises:
        DataError: if the folder or a file is missing, or a table cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected one with interactions and items, as .parquet or .csv")
    interactions = read_table(path, "interactions", INTERACTION_COLUMNS)
    unique = interactions.unique(maintain_order=True)
    if unique.height < interactions.height:
        logger.info("%s: dropped %d duplicate interactions", path, interactions.height - unique.height)
    return unique, read_items(path)


def read_items(path: Path) -> pl.DataFrame:
    """Read the items of a data folder, or of a checkpoint, as in `DataSet`.

    Raises:
        DataError: if the file is missing or cannot be read.
    """
    return _with_all_columns(read_table(Path(path), "items", ITEM_COLUMNS)).sort("item_id")


def _read_users(path: Path) -> pl.DataFrame | None:
    if find_table(path, "users") is None:
        return None
    users = read_table(path, "users", USER_COLUMNS, others=True)
    return users.with_columns(pl.col(pl.String).fill_null(UNKNOWN_CATEGORY)).sort("user_id")


def refuse_foreign(out: Path) -> None:
    """Raise unless `out` may be replaced, which deletes what is in it: the name is free, or a data folder's.

    Raises:
        DataError: `out` is a file, or a folder that holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file; expected a folder to write")
    foreign = sorted(path.name for path in out.iterdir() if path.name not in DATA_FILES or not path.is_file())
    if foreign:
        raise DataError(f"{out} holds {foreign[0]}, so it is not a data folder; not replacing it")


def _with_all_columns(items: pl.DataFrame) -> pl.DataFrame:
    """Fill in what the reader of `DataSet.items` may count on; a text that is nowhere stays away."""
    if "genres" not in items.columns:
        items = items.with_columns(genres=pl.lit([], dtype=pl.List(pl.String)))
    if "year" not in items.columns:
        items = items.with_columns(year=pl.lit(None, dtype=pl.Int32))
    items = items.with_columns(pl.col("genres").fill_null(pl.lit([], dtype=pl.List(pl.String))))
    if "text" in items.columns:
        items = items.with_columns(pl.col("text").fill_null(""))
    return items


def _check_ids(name: str, table: pl.DataFrame, column: str) -> None:
    negative = table.filter(pl.col(column) < 0)
    if negative.height:
        raise DataError(
            f"{name}: {negative.height} negative {column}s, such as {negative[column][0]}; expected ids >= 0"
        )


def _check_unique(name: str, table: pl.DataFrame, column: str) -> None:
    repeated = table.filter(pl.col(column).is_duplicated())
    if repeated.height:
        raise DataError(
            f"{name}: {repeated[column].n_unique()} {column}s appear more than once, such as "
            f"{repeated[column][0]}; expected one row each"
        )


def _check_items_known(interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    unknown = interactions.join(items, on="item_id", how="anti")
    if unknown.height:
        raise DataError(
            f"{unknown.height} interactions name {unknown['item_id'].n_unique()} item_ids that items lacks, such as "
            f"{unknown['item_id'][0]}; expected every item to be described"
        )


def _check_times(interactions: pl.DataFrame) -> None:
    absurd = interactions.filter(~pl.col("timestamp").is_between(0, LATEST_TIMESTAMP))
    if absurd.height:
        raise DataError(
            f"interactions: {absurd.height} timestamps are not between 1970 and 2100, such as "
            f"{absurd['timestamp'][0]}; expected seconds since 1970 (`fuserec data import` converts other units)"
        )


def _check_ratings(interactions: pl.DataFrame) -> None:
    if "rating" not in interactions.columns:
        return
    broken = interactions.filter(~pl.col("rating").is_finite())
    if broken.height:
        raise DataError(
            f"interactions: {broken.height} ratings are not finite, such as {broken['rating'][0]}; "
            "expected finite numbers"
        )


def _check_evaluable(interactions: pl.DataFrame) -> None:
    longest = int(interactions["user_id"].value_counts()["count"].to_numpy().max(initial=0))
    if longest < MIN_INTERACTIONS:
        raise DataError(
            f"no user has more than {longest} interactions; expected at least one user with "
            f"{MIN_INTERACTIONS}: one to learn from, one to validate on, one to test on"
        )
