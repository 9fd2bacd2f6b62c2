"""What the command shows of data: what an import made of files, what users did with recommendations."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fuserec.terminal import out, print_table, printable
from fuserec.train.encodings import UTF8
from fuserec.train.feedback import Feedback, Rate
from fuserec.train.import_report import TREATMENTS, Imported, Numbering
from fuserec.train.served import Malformed

# ISO 8601: if all times are before, they were hardly meant so.
SURELY_MEANT: Final = "1980"


def imported(report: Imported, folder: Path) -> None:
    """Show what was made of a user's own files."""
    columns = []
    for file, parts in report.columns.items():
        for part, column in parts.items():
            note = f", as {report.times}" if part == "time" else ""
            columns.append((file, column, part + note))
    print_table(("file", "column", "is taken for"), columns)
    for file, encoding in report.encodings.items():
        if encoding != UTF8:
            out.print(f"{file}: read as {encoding}", style="yellow")
    for name, count in report.treated.items():
        if count:
            out.print(f"{TREATMENTS[name]}: {count:,}", style="yellow")
    if report.unusable:
        out.print(printable(f"left out: {', '.join(report.unusable)}"), style="yellow")
    for kind, numbering in report.numbering.items():
        _numbering(kind, numbering, report.numbers_from)
    out.print(f"{report.interactions:,} interactions of {report.users:,} users with {report.items:,} items in {folder}")
    if report.last < SURELY_MEANT:
        out.print(
            f"no time is after {report.last}: --time-format if {report.times} is not what they are", style="yellow"
        )
    out.print(f"from {report.first} to {report.last}; ids and their numbers: ids_users.parquet, ids_items.parquet")


def _numbering(kind: str, numbering: Numbering, numbers_from: str | None) -> None:
    """Say what the numbers of ids are."""
    one = kind[:-1]
    if numbers_from is not None:
        kept = f"{numbering.known:,} {one} ids keep their numbers from {numbers_from}"
        out.print(f"{kept}, {numbering.ids - numbering.known:,} are new")
    if numbering.numbered:
        out.print(
            f"{numbering.numbered:,} {one} ids, such as {numbering.example!r}, are no numbers that stand for "
            "themselves and were numbered",
            style="yellow",
        )
    if numbering.alike:
        out.print(
            f"{numbering.alike:,} {one} ids differ from another in case or accents only; --casefold-ids makes them one",
            style="yellow",
        )


def feedback(report: Feedback, folder: Path) -> None:
    """Show what users did with what they were recommended."""
    for what, malformed in (("answers", report.malformed_answers), ("actions", report.malformed_actions)):
        _malformed(what, malformed)
    if report.answers_without_user:
        out.print(f"{report.answers_without_user:,} answers without a user: no action can be theirs", style="yellow")
    days = report.within_s / 86_400
    out.print(
        f"{report.answers:,} answers showed {report.shown:,} items; of {report.actions:,} actions "
        f"{report.actions_on_shown:,} ({report.share_on_shown:.1%}) were on an item shown at most {days:g} days before"
    )
    _rates("position", report.positions)
    _rates("model version", report.versions)
    if report.already_known:
        out.print(f"{report.already_known:,} actions are known already or repeated, left out", style="yellow")
    if report.items_added:
        out.print(f"{report.items_added:,} items are not described, added with their id as title", style="yellow")
    out.print(f"{report.interactions:,} interactions{' with ratings' if report.has_ratings else ''} in {folder}")


def _malformed(what: str, malformed: Malformed) -> None:
    if malformed.lines:
        some = ", ".join(map(str, malformed.lines[:5])) + (", ..." if len(malformed.lines) > 5 else "")
        lines = f"{len(malformed.lines):,} malformed lines among the {what}, left out: {some}; the first: "
        out.print(lines + malformed.reason, style="yellow")


def _rates(by: str, rates: list[Rate]) -> None:
    rows = [(rate.of, f"{rate.answers:,}", f"{rate.shown:,}", f"{rate.acted:,}", f"{rate.rate:.2%}") for rate in rates]
    print_table((by, "answers", "shown", "acted on", "rate"), rows)
