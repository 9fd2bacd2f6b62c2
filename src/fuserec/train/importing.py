"""A user's own files as a data folder: columns found, ids numbered, times in seconds, bad rows treated and counted.

Files are read lazily and more than once, so that memory is needed for ids, times and ratings, not for texts.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.files import replacing_folder
from fuserec.id_map import ID_FILES, ORIGINAL, IdMap, IdMaps
from fuserec.train import import_tables
from fuserec.train.columns import INTERACTION_ROLES, ITEM_ROLES, USER_ROLES
from fuserec.train.data import LATEST_TIMESTAMP, MIN_INTERACTIONS, refuse_foreign
from fuserec.train.identities import folded, number
from fuserec.train.import_report import TREATMENTS, Imported, ImportOptions, Numbering
from fuserec.train.import_source import ImportFile
from fuserec.train.sources import reading
from fuserec.train.times import check_times, read_times

# A row of items may be as large as its texts are allowed to be, and a group of rows is held in memory.
ITEMS_ROW_GROUP: Final = 10_000
AS_FOUND: Final = ImportOptions()


def import_folder(
    interactions: Path,
    out: Path,
    *,
    items: Path | None = None,
    users: Path | None = None,
    told: Mapping[str, str] | None = None,
    ids: Path | None = None,
    options: ImportOptions = AS_FOUND,
    on_step: Callable[[str], None] = lambda step: None,
) -> Imported:
    """Write the data folder `out` from a user's own files; it appears whole or not at all.

    Args:
        interactions: who consumed what and when: Parquet, CSV, or a folder of parts of one table.
        out: the folder; an older data folder is replaced, anything else is refused. Numbers that it has are kept.
        items: what the items are; without it their titles are their ids.
        users: categories of users.
        told: column by part where the guess from the names is not right: user, item, time and rating of the
            interactions; items_item, title, text, category and year of the items; users_user. An empty name says that
            there is none.
        ids: a data folder written by an earlier import, or its checkpoint, whose numbers are kept.
        options: how the files are read.
        on_step: told what is about to be done.

    Raises:
        DataError: if a file cannot be read, a column is not found, a time makes no sense, or nothing is left.
    """
    refuse_foreign(out)
    if ids is not None:
        options = dataclasses.replace(options, ids=ids)
    with tempfile.TemporaryDirectory(prefix="fuserec-import-") as scratch:
        files = _open(interactions, items, users, told or {}, options, Path(scratch))
        return _Import(files, out, options, on_step).run()


def _open(
    interactions: Path,
    items: Path | None,
    users: Path | None,
    told: Mapping[str, str],
    options: ImportOptions,
    scratch: Path,
) -> dict[str, ImportFile]:
    """Open the files that there are, each with what was told of it.

    The column of items that was told of the interactions is that of the items too, where they have one of that name.
    """
    of_items = {part: name for part, name in told.items() if part in ITEM_ROLES and part != "item"}
    given = {
        "interactions": (interactions, INTERACTION_ROLES, told, {}),
        "items": (items, ITEM_ROLES, of_items | _renamed(told, "items_item", "item"), _renamed(told, "item", "item")),
        "users": (users, USER_ROLES, _renamed(told, "users_user", "user"), _renamed(told, "user", "user")),
    }
    return {
        kind: ImportFile.open(kind, path, roles, of_file, hints, options, scratch)
        for kind, (path, roles, of_file, hints) in given.items()
        if path is not None
    }


def _renamed(told: Mapping[str, str], name: str, part: str) -> dict[str, str]:
    return {part: told[name]} if name in told else {}


class _Import:
    """One import; see `import_folder`."""

    def __init__(
        self, files: dict[str, ImportFile], out: Path, options: ImportOptions, on_step: Callable[[str], None]
    ) -> None:
        self.interactions = files["interactions"]
        self.items, self.users = files.get("items"), files.get("users")
        self.files = files
        self.out = out
        self.options = options
        self.on_step = on_step
        self.treated = dict.fromkeys(TREATMENTS, 0)
        self.unusable = [name for file in files.values() for name in file.unusable]

    def run(self) -> Imported:
        """Read, number, write."""
        file = self.interactions
        self.on_step(f"reading the ids of {file.path}")
        where, column = file.where("time"), file.columns["time"]
        with reading(file.path):
            times = read_times(file.table, column, where, self.options.time_format)
            n_rows = check_times(file.table, file.path, column, times, LATEST_TIMESTAMP)
        numbers_from, earlier = self._earlier()
        users, user_rows, user_ids = self._number("users", [file, self.users], earlier.users)
        items, item_rows, item_ids = self._number("items", [file, self.items], earlier.items)

        self.on_step("reading the interactions")
        table, counts = import_tables.interactions_table(file, times, user_rows[0], item_rows[0])
        self.treated |= counts
        if table.is_empty():
            why = ", ".join(f"{count} {name}" for name, count in self.treated.items() if count)
            raise DataError(f"{file.path}: none of its {n_rows} rows is left ({why}); expected at least one")
        consumed = item_ids.table.join(table, on="item_id", how="semi", maintain_order="left")
        with replacing_folder(self.out) as folder:
            n_items = self._write(folder, table, item_rows[-1], user_rows[-1], item_ids, consumed)
            IdMaps(user_ids, item_ids).write(folder)
            per_user = table["user_id"].value_counts()["count"]
            layouts = [one.source.layout for one in self.files.values() if one.source.layout is not None]
            self.treated |= {
                "rows_short": sum(layout.short for layout in layouts),
                "rows_blank": sum(layout.blank for layout in layouts),
                "columns_unusable": len(self.unusable),
                "items_never_consumed": n_items - consumed.height,
                "users_not_evaluated": int((per_user < MIN_INTERACTIONS).sum()),
            }
            report = Imported(
                columns={name: one.columns for name, one in self.files.items()},
                encodings={name: one.encoding for name, one in self.files.items()},
                times=times.kind,
                numbering={"users": users, "items": items},
                numbers_from=numbers_from,
                unusable=self.unusable,
                rows=n_rows,
                interactions=table.height,
                users=per_user.len(),
                items=n_items,
                first=_iso(table["timestamp"][0]),
                last=_iso(table["timestamp"][-1]),
                treated=self.treated,
            )
            source_note = {"source": "fuserec data import", **dataclasses.asdict(report)}
            (folder / "source.json").write_text(json.dumps(source_note, indent=2) + "\n", encoding="utf-8")
        return report

    def _earlier(self) -> tuple[str | None, IdMaps]:
        """Return where numbers are kept from, and the maps there: as told, else the folder that is written."""
        folder = self.options.ids
        if folder is not None:
            return str(folder), IdMaps(known_ids(folder, "users"), known_ids(folder, "items"))
        earlier = IdMaps() if self.options.renumber else IdMaps.read(self.out, DataError)
        return (str(self.out) if list(earlier) else None), earlier

    def _number(
        self, kind: str, files: list[ImportFile | None], earlier: IdMap | None
    ) -> tuple[Numbering, list[pl.DataFrame], IdMap]:
        """Number the ids of users or items; return what became of them, the numbers of the spellings by file, and all.

        Users without an interaction get no number: nothing is known of them that a model could use.
        """
        part = kind[:-1]
        spellings = [file.ids(part) for file in files if file is not None]
        originals = pl.concat([one[ORIGINAL] for one in (spellings if kind == "items" else spellings[:1])])
        ids = number(originals, kind, earlier)
        if earlier is not None and self.options.fold_case:
            self._check_folded(earlier)
        for one in spellings:
            self.treated["ids_merged"] += one.height - one[ORIGINAL].n_unique()
        known = 0 if earlier is None else earlier.table.height
        fresh = ids.table if earlier is None else ids.table.join(earlier.table, on=ORIGINAL, how="anti")
        numbered = fresh.filter(pl.col(ids.number).cast(pl.String) != pl.col(ORIGINAL))
        example = None if numbered.is_empty() else str(numbered[ORIGINAL][0])
        alike = ids.table.height - ids.table.select(folded(pl.col(ORIGINAL)).n_unique()).item()
        rows = [import_tables.numbered(one, ids) for one in spellings]
        return Numbering(ids.table.height, known, numbered.height, example, alike), rows, ids

    def _check_folded(self, earlier: IdMap) -> None:
        unfolded = earlier.table.filter(folded(pl.col(ORIGINAL)) != pl.col(ORIGINAL))
        if unfolded.height:
            raise DataError(
                f"{unfolded.height} {earlier.kind[:-1]} ids of the earlier import have capitals, such as "
                f"{unfolded[ORIGINAL][0]!r}; expected --casefold-ids then and now, or --renumber"
            )

    def _write(
        self,
        folder: Path,
        table: pl.DataFrame,
        item_rows: pl.DataFrame,
        user_rows: pl.DataFrame,
        item_ids: IdMap,
        consumed: pl.DataFrame,
    ) -> int:
        """Write interactions, items and users; return how many items there are."""
        table.write_parquet(folder / "interactions.parquet")
        self.on_step("writing the items")
        rows, counts = import_tables.items_table(self.items, item_rows, item_ids, consumed)
        self.treated |= counts
        with reading((self.items or self.interactions).path):
            rows.sink_parquet(folder / "items.parquet", row_group_size=ITEMS_ROW_GROUP)
        if self.users is not None:
            users, counts, unusable = import_tables.users_table(self.users, user_rows, table["user_id"])
            users.write_parquet(folder / "users.parquet")
            self.treated |= counts
            self.unusable += unusable
        return int(pl.scan_parquet(folder / "items.parquet").select(pl.len()).collect().item())


def known_ids(folder: Path, kind: str) -> IdMap:
    """Return the numbers that an import gave to "users" or "items".

    Raises:
        DataError: if the folder has none.
    """
    maps = IdMaps.read(folder, DataError)
    found = maps.users if kind == "users" else maps.items
    if found is None:
        raise DataError(f"{folder / ID_FILES[kind]} is missing; expected a folder written by `fuserec data import`")
    return found


def _iso(timestamp: int) -> str:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC).isoformat()
