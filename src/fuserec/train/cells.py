"""Cells of anybody's table as the texts and numbers that they are; what stands for nothing is null."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import polars as pl

# What databases, pandas, R, spreadsheets and JavaScript write where there is nothing, in lower case.
MISSING: Final = (
    "", "null", "(null)", "none", "nan", "-nan", "nat", "na", "n/a", "#n/a", "<na>", r"\n", "undefined",
)  # fmt: skip
_LONGEST: Final = 24  # spaces around it included

Collect = Callable[..., pl.DataFrame]


def texts(column: pl.Expr) -> pl.Expr:
    """Any column as stripped texts; `MISSING` is null."""
    text = column.cast(pl.String).str.strip_chars()
    return pl.when(~text.str.to_lowercase().is_in(MISSING)).then(text)


def long_texts(column: pl.Expr) -> pl.Expr:
    """Texts as they stand, for reading; `MISSING` is null."""
    text = column.cast(pl.String)
    start = text.str.slice(0, _LONGEST).str.strip_chars().str.to_lowercase()
    return pl.when(~(start.is_in(MISSING) & (text.str.len_chars() <= _LONGEST))).then(text)


def numbers(text: pl.Expr) -> pl.Expr:
    """Texts as float64, with a point or a comma before the decimals; null where it is no number."""
    return text.str.replace(r"^([-+]?\d+),(\d+)$", "$1.$2").cast(pl.Float64, strict=False)


def is_decimal_comma(text: pl.Expr) -> pl.Expr:
    """Whether `numbers` takes the comma of a text for a decimal one."""
    return text.str.contains(r"^[-+]?\d+,\d+$").fill_null(False)


def may_be_thousands(text: pl.Expr) -> pl.Expr:
    """Whether the comma of a text may as well part thousands: 1,234."""
    return text.str.contains(r"^[-+]?[1-9]\d{0,2},\d{3}$").fill_null(False)
