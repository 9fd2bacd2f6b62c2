"""A file of an import: opened, its columns given their parts, its ids collected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fuserec.errors import DataError
from fuserec.train.columns import Role, choose_columns
from fuserec.train.identities import original_ids, raw_ids
from fuserec.train.import_report import ImportOptions
from fuserec.train.parts import open_table
from fuserec.train.sources import Source, reading

# Parts that one text a row is read of, and those that may be a list of texts.
_PLAIN: frozenset[str] = frozenset({"title", "text", "year"})


@dataclass(frozen=True)
class ImportFile:
    """A file, opened, and the parts its columns play.

    Attributes:
        kind: "interactions", "items" or "users".
        source: the table.
        encoding: of a CSV.
        columns: by part.
        unusable: columns whose type holds no text, as "items.cover (Binary)".
        fold_case: whether ids that differ in case only are the same.
    """

    kind: str
    source: Source
    encoding: str
    columns: dict[str, str]
    unusable: list[str]
    fold_case: bool

    @classmethod
    def open(
        cls,
        kind: str,
        path: Path,
        roles: Mapping[str, Role],
        told: Mapping[str, str],
        hints: Mapping[str, str],
        options: ImportOptions,
        scratch: Path,
    ) -> ImportFile:
        """Open a file or a folder of parts.

        Args:
            kind: "interactions", "items" or "users".
            path: where it is.
            roles: the parts of such a file.
            told: column by part, where the user said.
            hints: likewise, where the file has such a column and nothing was told.
            options: how it is read.
            scratch: folder that stays while it is read.

        Raises:
            DataError: It cannot be read, or lacks a column.
        """
        source, encoding = open_table(path, options.encoding, scratch)
        schema = source.table.collect_schema()
        told = {part: name for part, name in hints.items() if name in schema} | dict(told)
        columns = choose_columns(path, schema.names(), roles, told)
        unusable = []
        for part, column in list(columns.items()):
            if part in _PLAIN and not is_text(schema[column]) or part == "category" and not is_texts(schema[column]):
                if part in told:
                    raise DataError(f"{path}: column {column!r} is {schema[column]}; expected texts, as the {part}")
                unusable.append(f"{kind}.{column} ({schema[column]})")
                del columns[part]
        return cls(kind, source, encoding, columns, unusable, options.fold_case)

    @property
    def path(self) -> Path:
        """What messages call it."""
        return self.source.path

    @property
    def table(self) -> pl.LazyFrame:
        """Its rows in the order of the file."""
        return self.source.table

    def where(self, part: str) -> str:
        """The file and the column of a part, for messages."""
        return f"{self.path}: column {self.columns[part]!r}"

    def dtype(self, part: str) -> pl.DataType:
        """The type of the column of a part."""
        return self.table.collect_schema()[self.columns[part]]

    def ids(self, part: str) -> pl.DataFrame:
        """Return `raw`, each spelling of an id once, and `original`, the id.

        Raises:
            DataError: The column holds none.
        """
        dtype = self.dtype(part)
        original_ids(pl.Series([], dtype=pl.String), dtype, self.where(part))  # refuses what cannot be texts
        raw = self.collect(raw_ids(self.columns[part]).unique()).to_series()
        return original_ids(raw, dtype, self.where(part), fold_case=self.fold_case)

    def collect(self, *columns: pl.Expr, **named: pl.Expr) -> pl.DataFrame:
        """Read expressions over the whole file."""
        with reading(self.path):
            return self.table.select(*columns, **named).collect(engine="streaming")

    def row(self, **named: pl.Expr) -> dict[str, Any]:
        """Read expressions that have one value over the whole file."""
        return self.collect(**named).row(0, named=True)


def is_text(dtype: pl.DataType) -> bool:
    """Whether every value of a type is a text, or is one when it is written down."""
    return not (dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration))


def is_texts(dtype: pl.DataType) -> bool:
    """Whether every value of a type is a text or a list of texts."""
    inner: pl.DataType | None = getattr(dtype, "inner", None) if isinstance(dtype, pl.List | pl.Array) else dtype
    return inner is not None and is_text(inner)
