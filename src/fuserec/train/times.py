"""Times as people write them, brought to whole seconds since 1970: ISO 8601 dates, epoch numbers, date columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

# A number of this size or more is of the next finer unit: 10^11 seconds are the year 5138, as milliseconds 1973.
_UNITS: Final = ((1e11, "seconds", 1), (1e14, "milliseconds", 10**3), (1e17, "microseconds", 10**6))
_FINEST: Final = ("nanoseconds", 10**9)
ISO: Final = "ISO 8601 dates"
_ISO_PATTERN: Final = (
    r"^(?P<date>\d{4}-\d\d-\d\d)(?:[T ](?P<hour>\d\d:\d\d)(?::(?P<second>\d\d)(?:[.,]\d+)?)?"
    r" ?(?:Z|UTC|(?P<sign>[+-])(?P<zone_hour>\d\d):?(?P<zone_minute>\d\d)?)?)?$"
)


@dataclass(frozen=True)
class Times:
    """How a column of times is read.

    Attributes:
        kind: for people: the unit, or that they are dates.
        seconds: int64 seconds since 1970, UTC; null where the value is neither missing nor readable.
    """

    kind: str
    seconds: pl.Expr


def read_times(source: pl.LazyFrame, column: str) -> Times:
    """Find out how the column `column` of `source` writes times; a time without a zone is UTC.

    Whether epoch numbers are seconds, milliseconds, microseconds or nanoseconds is told by their median, so that a
    few absurd ones among them do not change what the others mean.
    """
    dtype = source.collect_schema()[column]
    raw = pl.col(column)
    if dtype.is_temporal():
        return Times(f"{dtype}", raw.cast(pl.Datetime("us")).dt.epoch("s"))
    number = raw.cast(pl.Float64, strict=False)
    [(n_values, n_numbers, median)] = (
        source.select(n_values=texts(raw).count(), n_numbers=number.count(), median=number.quantile(0.5, "lower"))
        .collect(engine="streaming")
        .rows()
    )
    if median is None or (dtype == pl.String and 2 * n_numbers < n_values):
        return Times(ISO, _iso_seconds(texts(raw)))
    unit, factor = next(((unit, factor) for limit, unit, factor in _UNITS if abs(median) < limit), _FINEST)
    # An integer division where it can be one: a float64 cannot tell neighbouring nanoseconds apart.
    whole = raw.cast(pl.Int64, strict=False) // factor
    return Times(f"epoch {unit}", pl.coalesce(whole, (number / factor).floor().cast(pl.Int64, strict=False)))


def texts(column: pl.Expr) -> pl.Expr:
    """Any column as stripped texts; what is empty is missing."""
    text = column.cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _iso_seconds(text: pl.Expr) -> pl.Expr:
    part = text.str.extract_groups(_ISO_PATTERN).struct.field
    minute = part("hour").fill_null("00:00")
    local = pl.concat_str(part("date"), pl.lit(" "), minute, pl.lit(":"), part("second").fill_null("00"))
    zone_minutes = _number(part("zone_hour")) * 60 + _number(part("zone_minute"))
    sign = pl.when(part("sign") == "-").then(-1).otherwise(1)
    return local.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s") - sign * zone_minutes * 60


def _number(digits: pl.Expr) -> pl.Expr:
    return digits.cast(pl.Int64).fill_null(0)
