"""A data folder: who consumed what and when, and what the items are.

    interactions.parquet or .csv   user_id int64, item_id int64, timestamp int64 (seconds), optional rating float32
    items.parquet or .csv          item_id int64, title, optional genres (list; in CSV "Drama|War"), year int32, text

Rows of equal time keep the order of the file, so the order of the rows matters.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.train.tables import Column, read_table

INTERACTION_COLUMNS: Final = {
    "user_id": Column(pl.Int64()),
    "item_id": Column(pl.Int64()),
    "timestamp": Column(pl.Int64()),
    "rating": Column(pl.Float32(), required=False),
}
ITEM_COLUMNS: Final = {
    "item_id": Column(pl.Int64()),
    "title": Column(pl.String()),
    "genres": Column(pl.List(pl.String), required=False, nullable=True),
    "year": Column(pl.Int32(), required=False, nullable=True),
    "text": Column(pl.String(), required=False, nullable=True),
}
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

    Raises:
        DataError: if ids are negative or repeated, a rating is not finite, an interaction names an unknown item, or
            no user has enough interactions to be evaluated.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame

    def __post_init__(self) -> None:
        _check_ids("interactions", self.interactions, "user_id")
        _check_ids("interactions", self.interactions, "item_id")
        _check_ids("items", self.items, "item_id")
        _check_items_unique(self.items)
        _check_items_known(self.interactions, self.items)
        _check_ratings(self.interactions)
        _check_evaluable(self.interactions)


def read_folder(path: Path) -> DataSet:
    """Read a data folder.

    Exact duplicates among the interactions are dropped, and counted in the log.

    Raises:
        DataError: if the folder or a file is missing, a table cannot be read as described above, or the tables do not
            fit each other; the message says what was found and what was expected.
    """
    return DataSet(*read_tables(path))


def read_tables(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read the interactions and the items of a data folder, each as in `DataSet`, without comparing the two.

    Raises:
        DataError: if the folder or a file is missing, or a table cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected one with interactions and items, as .parquet or .csv")
    interactions = read_table(path, "interactions", INTERACTION_COLUMNS)
    items = read_table(path, "items", ITEM_COLUMNS)
    unique = interactions.unique(maintain_order=True)
    if unique.height < interactions.height:
        logger.info("%s: dropped %d duplicate interactions", path, interactions.height - unique.height)
    return unique, _with_all_columns(items).sort("item_id")


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


def _check_items_unique(items: pl.DataFrame) -> None:
    repeated = items.filter(pl.col("item_id").is_duplicated())
    if repeated.height:
        raise DataError(
            f"items: {repeated['item_id'].n_unique()} item_ids appear more than once, such as "
            f"{repeated['item_id'][0]}; expected one row an item"
        )


def _check_items_known(interactions: pl.DataFrame, items: pl.DataFrame) -> None:
    unknown = interactions.join(items, on="item_id", how="anti")
    if unknown.height:
        raise DataError(
            f"{unknown.height} interactions name {unknown['item_id'].n_unique()} item_ids that items lacks, such as "
            f"{unknown['item_id'][0]}; expected every item to be described"
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
