"""Times as people write them, brought to whole seconds since 1970: dates, epoch numbers, spreadsheet days.

What a column is written in is read off its values and told to the user; where it can be read in two ways it is refused,
and `--time-format` says which is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from fuserec.errors import DataError, UsageError
from fuserec.train.cells import texts

# A number of this size or more is of the next finer unit: 10^11 seconds are the year 5138, as milliseconds 1973.
_UNITS: Final = ((1e11, "seconds"), (1e14, "milliseconds"), (1e17, "microseconds"))
_FACTORS: Final = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
# Of epoch numbers of this size a hundredth is before 1973: another unit, or nothing that was meant.
_REAL_EPOCH: Final = 1e8
_SPREAD: Final = 100
ISO: Final = "ISO 8601 dates"
_ISO_PATTERN: Final = (
    r"^(?P<date>\d{4}-\d\d-\d\d)(?:[T ](?P<hour>\d\d:\d\d)(?::(?P<second>\d\d)(?:[.,]\d+)?)?"
    r" ?(?:Z|UTC|(?P<sign>[+-])(?P<zone_hour>\d\d):?(?P<zone_minute>\d\d)?)?)?$"
)
# Days since 1899-12-30: 1970 to 2100.
_EXCEL_EPOCH: Final = 25_569
_EXCEL_DAYS: Final = (_EXCEL_EPOCH, 73_051)
_DAY_S: Final = 86_400
_YEAR, _MONTH, _DAY, _HOUR = (
    "(?:19|20)[0-9]{2}",
    "(?:0[1-9]|1[0-2])",
    "(?:0[1-9]|[12][0-9]|3[01])",
    "(?:[01][0-9]|2[0-3])",
)
# Dates that are written as one number, and how those are read; None for those that may as well be something else.
_DIGITS: Final = {
    "YYYYMMDD": (f"^{_YEAR}{_MONTH}{_DAY}$", "%Y%m%d"),
    "YYYYMMDDHH": (f"^{_YEAR}{_MONTH}{_DAY}{_HOUR}$", "%Y%m%d%H"),
    "YYYYMMDDHHMM": (f"^{_YEAR}{_MONTH}{_DAY}{_HOUR}[0-5][0-9]$", "%Y%m%d%H%M"),
    "YYYYMMDDHHMMSS": (f"^{_YEAR}{_MONTH}{_DAY}{_HOUR}[0-5][0-9][0-5][0-9]$", "%Y%m%d%H%M%S"),
    "YYYYMM": (f"^{_YEAR}{_MONTH}$", None),
    "YYMMDD": (f"^[0-9]{{2}}{_MONTH}{_DAY}$", None),
    "YYYY": ("^(?:19|20)[0-9]{2}$", None),
}
# What the dates that are refused may be meant as; more than one fits where day and month can be exchanged.
_COMMON: Final = [
    date + time
    for date in (
        "%m/%d/%Y",
        "%d/%m/%Y",
        "%d.%m.%Y",
        "%d-%m-%Y",
        "%Y/%m/%d",
        "%d %b %Y",
        "%b %d, %Y",
        "%m/%d/%y",
        "%d.%m.%y",
    )
    for time in ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
] + ["%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z", "%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%d %H:%M:%S%.f %z"]
FORMATS: Final = ("iso", *_FACTORS, "excel")


@dataclass(frozen=True)
class Times:
    """How a column of times is read.

    Attributes:
        kind: for people: the unit, or that they are dates.
        seconds: int64 seconds since 1970, UTC; null where the value is neither missing nor readable.
        is_another_unit: where a number is so small that it cannot be of the unit of most.
    """

    kind: str
    seconds: pl.Expr
    is_another_unit: pl.Expr = pl.lit(False)


def check_format(time_format: str) -> None:
    """Raise unless times can be read by a format: one of `FORMATS`, or a pattern such as %d.%m.%Y %H:%M.

    Raises:
        UsageError: They cannot.
    """
    expected = f"must be {', '.join(FORMATS)} or a pattern such as '%d.%m.%Y %H:%M'"
    if time_format in FORMATS:
        return
    if "%" not in time_format:
        raise UsageError(f"invalid --time-format={time_format}: {expected}")
    try:
        pl.Series([""]).str.to_datetime(time_format, strict=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"invalid --time-format={time_format}: {reason}; {expected}") from error


def read_times(source: pl.LazyFrame, column: str, where: str = "", time_format: str | None = None) -> Times:
    """Find out how the column `column` of `source` writes times; a time without a zone is UTC.

    Whether epoch numbers are seconds, milliseconds, microseconds or nanoseconds is told by their median, so that a
    few absurd ones among them do not change what the others mean.

    Args:
        source: the table.
        column: its name.
        where: file and column, for messages.
        time_format: as `check_format` takes it, where the user said.

    Raises:
        DataError: The column is of a type that holds no times, or its numbers can be read in two ways.
    """
    dtype = source.collect_schema()[column]
    raw = pl.col(column)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return Times(f"{dtype}", raw.cast(pl.Datetime("us")).dt.epoch("s"))
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)):
        raise DataError(f"{where} is {dtype}; expected times as numbers, texts or dates")
    text = texts(raw).str.replace(r"^(-?\d+)\.0+$", "$1")
    if time_format is not None:
        return _told(time_format, text)
    seen = _look(source, text)
    if not seen["n_numbers"] or 2 * seen["n_numbers"] < seen["n_values"]:
        return _told("iso", text)
    median = abs(seen["median"] or 0.0)  # of all but 0, which is the same moment in every unit
    for name, (_, pattern) in _DIGITS.items():
        if 2 * seen[name] > seen["n_values"]:
            if pattern is None:
                raise DataError(
                    f"{where} has {seen[name]} numbers like {seen['first']!r}, which may be {name} and would be 1970 "
                    "as seconds; expected dates with a day; --time-format says what they are"
                )
            return Times(f"dates as {name}", _by_pattern(text, pattern))
    if _EXCEL_DAYS[0] <= seen["least"] and seen["most"] < _EXCEL_DAYS[1]:
        return _told("excel", text)
    unit = next((unit for limit, unit in _UNITS if median < limit), "nanoseconds")
    times = _told(unit, text)
    if median < _REAL_EPOCH:
        return times
    number = text.cast(pl.Float64, strict=False)
    is_small = (number != 0) & (number.abs() < median / _SPREAD)
    return Times(times.kind, times.seconds, is_small.fill_null(False))


def _look(source: pl.LazyFrame, text: pl.Expr) -> dict[str, Any]:
    """Return what there is to know of a column: how many values, numbers, and numbers that look like dates."""
    number = text.cast(pl.Float64, strict=False)
    number = pl.when(number.is_finite()).then(number)
    looks = {name: text.str.contains(pattern).sum() for name, (pattern, _) in _DIGITS.items()}
    return (
        source.select(
            n_values=text.count(), n_numbers=number.count(),
            median=number.filter(number != 0).quantile(0.5, "lower"), least=number.min(),
            most=number.max(), first=text.drop_nulls().first(), **looks,
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )  # fmt: skip


def _told(time_format: str, text: pl.Expr) -> Times:
    """Read texts by a format that is known."""
    number = text.cast(pl.Float64, strict=False)
    if time_format == "iso":
        return Times(ISO, _iso_seconds(text))
    if time_format == "excel":
        seconds = ((number - _EXCEL_EPOCH) * _DAY_S).round().cast(pl.Int64, strict=False)
        return Times("spreadsheet days since 1899-12-30", seconds)
    if time_format not in _FACTORS:
        return Times(f"dates as {time_format}", _by_pattern(text, time_format))
    factor = _FACTORS[time_format]
    # An integer division where it can be one: a float64 cannot tell neighbouring nanoseconds apart.
    whole = text.cast(pl.Int64, strict=False) // factor
    return Times(f"epoch {time_format}", pl.coalesce(whole, (number / factor).floor().cast(pl.Int64, strict=False)))


def check_times(source: pl.LazyFrame, path: Path, column: str, times: Times, latest: int) -> int:
    """Return the number of rows.

    Args:
        source: the table.
        path: for messages.
        column: of the times.
        times: how they are read.
        latest: seconds since 1970 after which no time is meant.

    Raises:
        DataError: There are no rows, or a time cannot be read or be meant.
    """
    raw = texts(pl.col(column))
    is_unreadable = raw.is_not_null() & times.seconds.is_null()
    is_absurd = ~times.seconds.is_between(0, latest)
    found = source.select(
        rows=pl.len(), unreadable=is_unreadable.sum(), unread=raw.filter(is_unreadable).first(),
        absurd=is_absurd.sum(), out_of_range=raw.filter(is_absurd).first(),
        other=times.is_another_unit.sum(), of_other=raw.filter(times.is_another_unit).first(),
    ).collect(engine="streaming").row(0, named=True)  # fmt: skip
    where = f"{path}: column {column!r}"
    if not found["rows"]:
        raise DataError(f"{path}: no rows; expected at least one")
    if found["unreadable"]:
        raise DataError(
            f"{where} has {found['unreadable']} values like {found['unread']!r}; expected {times.kind}"
            f"{_formats_of(found['unread'])}"
        )
    if found["absurd"]:
        raise DataError(
            f"{where} has {found['absurd']} times that are not between 1970 and 2100, such as "
            f"{found['out_of_range']!r}, read as {times.kind}"
        )
    if found["other"]:
        raise DataError(
            f"{where} has {found['other']} times such as {found['of_other']!r} among others that are over {_SPREAD} "
            f"times as large and read as {times.kind}; expected all of one unit"
        )
    return int(found["rows"])


def _formats_of(text: str) -> str:
    """Say by which common patterns a text can be read."""
    fitting = [one for one in _COMMON if pl.Series([text]).str.to_datetime(one, strict=False).null_count() == 0]
    if not fitting:
        return ", or times in another form by --time-format, such as '%d.%m.%Y %H:%M'"
    return ", or times in another form by --time-format: here " + " or ".join(f"'{one}'" for one in fitting[:2])


def _by_pattern(text: pl.Expr, pattern: str) -> pl.Expr:
    if pattern == "%Y%m%d%H":  # polars wants minutes beside hours
        text, pattern = pl.concat_str(text, pl.lit("00")), "%Y%m%d%H%M"
    read = text.str.to_datetime(pattern, strict=False, time_unit="us")
    return read.dt.epoch("s")


def _iso_seconds(text: pl.Expr) -> pl.Expr:
    part = text.str.extract_groups(_ISO_PATTERN).struct.field
    minute = part("hour").fill_null("00:00")
    local = pl.concat_str(part("date"), pl.lit(" "), minute, pl.lit(":"), part("second").fill_null("00"))
    zone_minutes = _number(part("zone_hour")) * 60 + _number(part("zone_minute"))
    sign = pl.when(part("sign") == "-").then(-1).otherwise(1)
    return local.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False).dt.epoch("s") - sign * zone_minutes * 60


def _number(digits: pl.Expr) -> pl.Expr:
    return digits.cast(pl.Int64).fill_null(0)
