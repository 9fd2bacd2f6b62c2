"""Genres, words and years as numbers; row 0 stays empty."""

from __future__ import annotations

import polars as pl
import torch

from fuserec.train.features import WORDS_PER_ITEM, build_features


def catalogue(titles: list[str], genres: list[list[str]], years: list[int | None]) -> pl.DataFrame:
    return pl.DataFrame(
        {"title": titles, "genres": genres, "year": years},
        schema={"title": pl.String, "genres": pl.List(pl.String), "year": pl.Int32},
    )


def test_small_catalogue() -> None:
    features = build_features(
        catalogue(["The Ring", "Ring 2", "Élan"], [["Horror", "Drama"], ["Horror"], []], [1998, None, 2003])
    )
    assert features.genres.tolist() == [[0, 0], [0.5, 0.5], [0, 1], [0, 0]]
    assert features.words[:, :2].tolist() == [[0, 0], [1, 0], [1, 0], [0, 0]]  # only "ring" is in two titles
    assert features.words.shape == (4, WORDS_PER_ITEM)
    assert features.years[0] == 0
    assert features.years[2] == 0
    assert 0 < features.years[1] < features.years[3] <= features.n_years


def test_nothing_known() -> None:
    features = build_features(catalogue(["a", "b"], [[], []], [None, None]))
    assert (features.n_genres, features.n_words, features.n_years) == (0, 0, 0)
    assert features.genres.shape == (3, 0)
    assert not features.words.any()
    assert not features.years.any()


def test_year_buckets_rise_and_are_filled_evenly() -> None:
    years = list(range(1900, 2000))
    features = build_features(catalogue(["x"] * 100, [[]] * 100, years))
    buckets = features.years[1:]
    assert torch.equal(buckets, buckets.sort().values)
    counts = buckets.bincount(minlength=features.n_years + 1)[1:]
    assert int(counts.max() - counts.min()) <= 2


def test_a_long_title_is_cut() -> None:
    title = " ".join(f"word{n}" for n in range(20))
    features = build_features(catalogue([title, title], [[], []], [None, None]))
    assert bool((features.words[1:] > 0).all())
