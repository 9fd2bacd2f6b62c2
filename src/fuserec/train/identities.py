"""Ids of anybody's making, numbered: models and the service know int64 ids only."""

from __future__ import annotations

from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.id_map import ORIGINAL, IdMap
from fuserec.train.cells import texts

FIRST_NUMBER: Final = 1
RAW: Final = "raw"
# The power of two from which on a float no longer tells every two neighbouring whole numbers apart.
_FLOAT_BITS: Final = {pl.Float64(): 53, pl.Float32(): 24, pl.Float16(): 11}
_WHOLE: Final = r"^(0|-?[1-9]\d{0,18})$"


def raw_ids(column: str) -> pl.Expr:
    """The cells of a column of ids as texts, null where missing."""
    return pl.concat_str(texts(pl.col(column)), pl.lit("")).alias(RAW)  # a copy, see `sources.cut`


def original_ids(raw: pl.Series, dtype: pl.DataType, where: str, *, fold_case: bool = False) -> pl.DataFrame:
    """Find the id that each spelling in a column stands for.

    12.0, which is what a table makes of 12 once another id is missing, is 12: in a column of floats, and in one of
    texts that are all written so. Other spellings are ids of their own.

    Args:
        raw: (n,) str, spellings, as `raw_ids` reads them; nulls and repeats allowed.
        dtype: of the column.
        where: for messages, file and column.
        fold_case: whether ids that differ in case only, or in how an accent is written, are the same.

    Returns:
        `raw` str, each spelling once, and `original` str.

    Raises:
        DataError: if the column holds no ids, or floats too large to be told apart.
    """
    spellings = pl.DataFrame({RAW: raw.drop_nulls().unique()}, schema={RAW: pl.String})
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Time, pl.Duration):
        raise DataError(f"{where} is {dtype}; expected ids that are texts or whole numbers")
    plain = pl.col(RAW)
    if dtype.is_float():
        value = plain.cast(pl.Float64, strict=False)
        spellings = spellings.filter(value.is_finite())
        bits = _FLOAT_BITS[dtype]
        large = spellings.filter(value.abs() >= 2.0**bits)
        if large.height:
            raise DataError(
                f"{where} is {dtype} and has {large.height} ids of 2^{bits} or more, such as {large[RAW][0]}, of which "
                "a float cannot tell neighbours apart; expected integers or texts"
            )
        is_whole = value == value.round()
        plain = pl.when(is_whole).then(value.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(plain)
    elif dtype.is_decimal() or spellings[RAW].str.contains(r"^-?\d+\.0$").all():
        plain = plain.str.replace(r"^(-?\d+)\.0+$", "$1")
    return spellings.with_columns((folded(plain) if fold_case else plain).alias(ORIGINAL))


def folded(ids: pl.Expr) -> pl.Expr:
    """Ids in lower case, accents written in one way."""
    return ids.str.normalize("NFC").str.to_lowercase()


def number(found: pl.Series, kind: str, known: IdMap | None = None) -> IdMap:
    """Give every id a number.

    If all are whole numbers that an int64 holds, each from 0 on is its own number, and those below 0, which the service
    has no room for, get the next ones. If not, all are numbered in alphabetical order.

    Args:
        found: (n,) str, nulls and repeats allowed.
        kind: "users" or "items".
        known: an earlier result; its numbers stay, and new ids get numbers after them.
    """
    fresh = found.drop_nulls().unique().sort().rename(ORIGINAL).to_frame()
    table = pl.DataFrame(schema={"number": pl.Int64, ORIGINAL: pl.String})
    if known is not None:
        fresh = fresh.join(known.table, on=ORIGINAL, how="anti", maintain_order="left")
        table = known.table.rename({known.number: "number"})
    own = fresh[ORIGINAL].str.extract(_WHOLE, 0).cast(pl.Int64, strict=False)
    if own.null_count() == 0 and (known is None or _is_plain(known)):
        stays = (own >= 0) & ~own.is_in(table["number"].implode())
        kept = fresh.select(own.alias("number"), ORIGINAL).filter(stays)
        table, fresh = pl.concat([table, kept]), fresh.filter(~stays)
    free = _free_numbers(table["number"], fresh.height)
    table = pl.concat([table, fresh.select(free.alias("number"), ORIGINAL)])
    return IdMap(kind, table.rename({"number": "user_id" if kind == "users" else "item_id"}))


def _is_plain(known: IdMap) -> bool:
    """Whether every whole number from 0 on among the ids is its own number, and there are no others but below 0."""
    own = known.table[ORIGINAL].str.extract(_WHOLE, 0).cast(pl.Int64, strict=False)
    return own.null_count() == 0 and bool(((own < 0) | (own == known.table[known.number])).all())


def _free_numbers(taken: pl.Series, count: int) -> pl.Series:
    """Return numbers after those that are taken, or between them where an int64 ends."""
    first = FIRST_NUMBER if taken.is_empty() else int(taken.to_numpy().max()) + 1
    if first + count < 2**63:
        return pl.int_range(first, first + count, eager=True)
    candidates = pl.int_range(FIRST_NUMBER, FIRST_NUMBER + len(taken) + count, eager=True)
    return candidates.filter(~candidates.is_in(taken.implode())).head(count)
