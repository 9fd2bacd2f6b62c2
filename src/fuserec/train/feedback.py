"""What users did with what they were recommended: measured, and written as interactions for the next training run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from fuserec.errors import DataError, UsageError
from fuserec.files import replacing_folder
from fuserec.id_map import ID_FILES, ORIGINAL, IdMaps
from fuserec.train.actions import read_actions
from fuserec.train.data import read_items, read_tables, refuse_foreign
from fuserec.train.importing import known_ids
from fuserec.train.served import Malformed, Served, read_served
from fuserec.train.tables import find_table

POSITIONS: Final = 10
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True)
class Rate:
    """How often what was shown was acted on.

    Attributes:
        of: what these items have in common: their position, or the version of the model that showed them.
        answers: answers with such items.
        shown: items shown.
        acted: those of them that their user acted on within the window.
    """

    of: str
    answers: int
    shown: int
    acted: int

    @property
    def rate(self) -> float:
        """Share of the shown items that were acted on."""
        return self.acted / self.shown if self.shown else 0.0


@dataclass(frozen=True)
class Feedback:
    """What was read, what it says, and what was written.

    Attributes:
        answers: recommendations in the log.
        answers_without_user: of these, to nobody in particular: nothing can be matched with them.
        shown: items in the other answers.
        actions: what users did.
        actions_on_shown: of these, on an item that the user was shown at most `within_s` before.
        within_s: the window, in seconds.
        positions: by place in the answer, the first ten.
        versions: by model version.
        malformed_answers: lines of the log that were left out.
        malformed_actions: rows of the actions that were left out.
        interactions: rows that were written.
        already_known: actions that the old data holds already, and repeats, left out.
        items_added: items that the old data does not describe, added with their id as title.
        has_ratings: whether ratings were written: they are if every action has one.
    """

    answers: int
    answers_without_user: int
    shown: int
    actions: int
    actions_on_shown: int
    within_s: int
    positions: list[Rate]
    versions: list[Rate]
    malformed_answers: Malformed
    malformed_actions: Malformed
    interactions: int
    already_known: int
    items_added: int
    has_ratings: bool

    @property
    def share_on_shown(self) -> float:
        """Share of the actions that were on what had been recommended."""
        return self.actions_on_shown / self.actions if self.actions else 0.0

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, shares included."""
        rates = {
            name: [{**dataclasses.asdict(rate), "rate": rate.rate} for rate in getattr(self, name)]
            for name in ("positions", "versions")
        }
        return {**dataclasses.asdict(self), "share_on_shown": self.share_on_shown, **rates}


def parse_window(text: str) -> int:
    """Return the seconds of a window such as "7d", "12h", "30m" or "90s".

    Raises:
        UsageError: if it is not written so.
    """
    found = re.fullmatch(r"([1-9]\d{0,8})([smhd])", text)
    if found is None:
        raise UsageError(f"--within came as {text!r}; expected a number and s, m, h or d, such as 7d")
    return int(found[1]) * _SECONDS[found[2]]


def write_feedback(
    served: Path,
    actions: Path,
    out: Path,
    *,
    data: Path | None = None,
    within_s: int = 7 * 86_400,
    only: Sequence[str] = (),
    original_ids: bool = False,
    merge: bool = False,
) -> Feedback:
    """Match actions with answers, and write the actions as the data folder `out`.

    Args:
        served: the log of answers, see `served`.
        actions: user, item and time, optional rating and action, as CSV, Parquet or JSON lines; columns are guessed
            from their names as in `fuserec data import`.
        out: the folder; an older data folder is replaced.
        data: the data folder the model was trained on, or its checkpoint: titles come from it, and actions that it
            holds already are left out.
        within_s: how long after an answer an action still counts as on what it showed.
        only: the values of the column `action` that count; all, where there are none.
        original_ids: whether the actions carry the ids from before `fuserec data import`, whose numbers `data` has.
        merge: whether to write the interactions of `data` too, to train from scratch.

    Raises:
        DataError: if a file cannot be read, or no line or row of it is usable.
        UsageError: if an option needs `data` and there is none.
    """
    if data is None and (original_ids or merge):
        raise UsageError(f"{'--original-ids' if original_ids else '--merge'} needs --data; none was given")
    refuse_foreign(out)
    log = read_served(served)
    known = (
        {kind: known_ids(data, f"{kind}s") for kind in ("user", "item")} if data is not None and original_ids else {}
    )
    read = read_actions(actions, only=only, ids=known)
    old: pl.DataFrame | None = None
    items: pl.DataFrame | None = None
    if data is not None:
        items = read_items(data)
        # A checkpoint has items and no interactions; that is enough unless they are to be merged.
        if merge or find_table(data, "interactions") is not None:
            old, _ = read_tables(data)
    matched = _matched(log, read.table, within_s)

    fresh = read.table.unique(maintain_order=True)
    if fresh["rating"].null_count():
        fresh = fresh.drop("rating").unique(maintain_order=True)
    if old is not None:
        fresh = fresh.join(old, on=["user_id", "item_id", "timestamp"], how="anti", maintain_order="left")
    written = fresh
    if merge and old is not None:
        shared = [name for name in old.columns if name in fresh.columns]
        written = pl.concat([old.select(shared), fresh.select(shared)])
    if written.is_empty():
        raise DataError(
            f"{actions}: {data} holds all of its {read.table.height} actions already; nothing is new to write"
        )
    new_ids = read.ids.get("item")
    described, n_added = _described(items, written, None if new_ids is None else new_ids.table)
    with replacing_folder(out) as folder:
        written.write_parquet(folder / "interactions.parquet")
        described.write_parquet(folder / "items.parquet")
        _carry_over(data, folder)
        IdMaps(read.ids.get("user"), read.ids.get("item")).write(folder)
        report = Feedback(
            answers=sum(log.answers.values()),
            answers_without_user=log.without_user,
            shown=log.shown.height,
            actions=read.table.height,
            actions_on_shown=matched.height,
            within_s=within_s,
            positions=_rates(log, matched, "position")[:POSITIONS],
            versions=_rates(log, matched, "model_version"),
            malformed_answers=log.malformed,
            malformed_actions=read.malformed,
            interactions=written.height,
            already_known=read.table.height - fresh.height,
            items_added=n_added,
            has_ratings="rating" in written.columns,
        )
        note = {"source": "fuserec data feedback", **report.document()}
        (folder / "source.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    return report


def _carry_over(data: Path | None, folder: Path) -> None:
    """Copy what belongs to ids and not to interactions."""
    if data is None:
        return
    names = list(ID_FILES.values())
    if find_table(data, "interactions") is not None:  # a checkpoint has a users.parquet too, of histories
        names += ["users.parquet", "users.csv"]
    for name in names:
        if (data / name).is_file():
            shutil.copyfile(data / name, folder / name)


def _matched(log: Served, done: pl.DataFrame, within_s: int) -> pl.DataFrame:
    """Return the actions on shown items, each with the latest answer that showed the item at most `within_s` before."""
    return done.join_asof(
        log.shown.sort("timestamp"),
        on="timestamp",
        by=["user_id", "item_id"],
        strategy="backward",
        tolerance=within_s,
        check_sortedness=False,  # both are; it cannot be checked with `by`
    ).drop_nulls("answer")


def _rates(log: Served, matched: pl.DataFrame, by: str) -> list[Rate]:
    """Rates by a column of `shown`; an item of an answer that was acted on twice counts once."""
    shown = log.shown.group_by(by).agg(answers=pl.col("answer").n_unique(), shown=pl.len())
    acted = matched.unique(["answer", "item_id"]).group_by(by).agg(acted=pl.len())
    rates = shown.join(acted, on=by, how="left").sort(by)
    return [Rate(str(of), answers, n, acted or 0) for of, answers, n, acted in rates.iter_rows()]


def _described(
    items: pl.DataFrame | None, interactions: pl.DataFrame, ids: pl.DataFrame | None
) -> tuple[pl.DataFrame, int]:
    """Return the items, those that are new with their original id or their number as title, and how many those are."""
    found = interactions.select("item_id").unique().sort("item_id")
    if items is not None:
        found = found.join(items, on="item_id", how="anti", maintain_order="left")
    titles = found.with_columns(title=pl.col("item_id").cast(pl.String))
    if ids is not None:
        titles = found.join(ids, on="item_id", how="left", maintain_order="left").rename({ORIGINAL: "title"})
    return (titles if items is None else pl.concat([items, titles], how="diagonal")), found.height
