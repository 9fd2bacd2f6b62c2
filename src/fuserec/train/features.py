"""Item features for the item tower: genres, title words and year buckets, numbered by what the catalogue holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl
import torch
from torch import Tensor

# A word of a single title says no more than the item's own id.
MIN_TITLES_PER_WORD: Final = 2
WORDS_PER_ITEM: Final = 8
YEAR_BUCKETS: Final = 16
WORD_PATTERN: Final = r"[\p{L}\p{N}]+"


@dataclass(frozen=True)
class CatalogueFeatures:
    """Features of I items; row 0 of each tensor stands for padding and holds zeros.

    Attributes:
        genres: (I + 1, n_genres) float32, 1 / number of genres of the item at each of them.
        words: (I + 1, WORDS_PER_ITEM) int64 in 0..n_words, 0 for "no word".
        years: (I + 1,) int64 in 0..n_years, 0 for "year unknown".
    """

    genres: Tensor
    words: Tensor
    years: Tensor
    n_genres: int
    n_words: int
    n_years: int


def build_features(items: pl.DataFrame) -> CatalogueFeatures:
    """Number the features of a catalogue: columns title, genres, year as in `DataSet.items`, row order kept."""
    genres, n_genres = _genres(items["genres"])
    words, n_words = _words(items["title"])
    years, n_years = _years(items["year"])
    return CatalogueFeatures(genres, words, years, n_genres, n_words, n_years)


def genre_names(genres: pl.Series) -> pl.Series:
    """Return the genres of a catalogue in the order of their numbers."""
    return genres.explode().drop_nulls().unique().sort()


def known_words(titles: pl.Series) -> pl.Series:
    """Return the title words of a catalogue in the order of their numbers, the first having number 1."""
    counts = _split(titles).explode().drop_nulls().value_counts()
    return counts.filter(pl.col("count") >= MIN_TITLES_PER_WORD)[titles.name].sort()


def year_edges(years: pl.Series) -> Tensor:
    """Return what bounds the year buckets: (n_years + 1,) float64, rising; (0,) if no year is known.

    Cut at quantiles: catalogues lean to recent years, and equal spans would leave most buckets empty.
    """
    known = torch.tensor(years.drop_nulls().to_list()).double()
    if known.numel() == 0:
        return known
    cuts = known.quantile(torch.linspace(0, 1, YEAR_BUCKETS + 1)[1:-1].double())
    return torch.cat([known.min()[None], torch.unique(cuts), known.max()[None]])


def year_buckets(years: Tensor, edges: Tensor) -> Tensor:
    """Find years' buckets, numbered from 0: (N,) float64 -> (N,) int64; what lies outside goes to the nearest."""
    return torch.bucketize(years, edges[1:-1])


def _split(titles: pl.Series) -> pl.Series:
    return titles.str.to_lowercase().str.extract_all(WORD_PATTERN).list.unique(maintain_order=True)


def _genres(genres: pl.Series) -> tuple[Tensor, int]:
    names = {name: index for index, name in enumerate(genre_names(genres))}
    table = torch.zeros(len(genres) + 1, len(names))
    for row, of_item in enumerate(genres, start=1):
        for name in of_item:
            table[row, names[name]] = 1.0 / len(of_item)
    return table, len(names)


def _words(titles: pl.Series) -> tuple[Tensor, int]:
    numbers = {word: number for number, word in enumerate(known_words(titles), start=1)}
    table = torch.zeros(len(titles) + 1, WORDS_PER_ITEM, dtype=torch.int64)
    for row, of_item in enumerate(_split(titles), start=1):
        kept = [numbers[word] for word in of_item if word in numbers][:WORDS_PER_ITEM]
        table[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return table, len(numbers)


def _years(years: pl.Series) -> tuple[Tensor, int]:
    table = torch.zeros(len(years) + 1, dtype=torch.int64)
    edges = year_edges(years)
    if edges.numel() == 0:
        return table, 0
    filled = torch.tensor(years.fill_null(0).to_list()).double()
    table[1:] = torch.where(torch.tensor(years.is_not_null().to_list()), year_buckets(filled, edges) + 1, 0)
    return table, int(edges.numel()) - 1
