"""Ids of anybody's making, numbered: models and the service know int64 ids only."""

from __future__ import annotations

from typing import Final

import polars as pl

from fuserec.train.times import texts

ORIGINAL: Final = "original"
FIRST_NUMBER: Final = 1
# Digits without leading zeros, few enough for an int64: such ids are numbers already.
_CANONICAL: Final = r"^(0|[1-9]\d{0,17})$"


def originals(column: str) -> pl.Expr:
    """The ids of a column as texts, null where missing.

    12.0, which is what a table makes of 12 once another id is missing, is read as 12.
    """
    plain = texts(pl.col(column)).str.replace(r"^(\d+)\.0$", "$1")
    return pl.concat_str(plain, pl.lit("")).alias(ORIGINAL)  # a copy, see `sources.cut`


def number(found: pl.Series, name: str, known: pl.DataFrame | None = None) -> pl.DataFrame:
    """Give every id a number: itself, if all are such numbers, else its place in alphabetical order.

    Args:
        found: (n,) str, repeats allowed.
        name: of the column of numbers.
        known: an earlier result; its numbers stay, and new ids get numbers after them.

    Returns:
        `name` int64 and `original` str, sorted by number.
    """
    fresh = found.drop_nulls().unique().sort().rename(ORIGINAL).to_frame()
    if known is not None:
        fresh = fresh.join(known, on=ORIGINAL, how="anti", maintain_order="left")
    is_canonical = fresh[ORIGINAL].str.contains(_CANONICAL).all()
    if is_canonical and (known is None or (known[name].cast(pl.String) == known[ORIGINAL]).all()):
        numbers = fresh[ORIGINAL].cast(pl.Int64)
    else:
        first = FIRST_NUMBER if known is None or known.is_empty() else int(known[name].to_numpy().max()) + 1
        numbers = pl.int_range(first, first + fresh.height, eager=True)
    numbered = fresh.select(numbers.alias(name), ORIGINAL)
    return (numbered if known is None else pl.concat([known, numbered])).sort(name)
