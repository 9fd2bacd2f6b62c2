"""What the command shows a person: tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from fuserec.catalogue import Catalogue

if TYPE_CHECKING:
    from fuserec.client import Recommendations
    from fuserec.manifest import Manifest
    from fuserec.serve.launcher import Server
    from fuserec.train.feedback import Feedback, Rate
    from fuserec.train.importing import Imported
    from fuserec.train.served import Malformed

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Yield a function that is told of each step as it begins; a finished step is shown with its seconds."""
    current: list[tuple[str, float]] = []

    def finish(mark: str) -> None:
        if current:
            step, start = current.pop()
            err.print(f"{mark} {step} [dim]{time.perf_counter() - start:.1f} s[/dim]")

    with err.status("") as status:

        def begin(step: str) -> None:
            finish("[green]✓[/green]")
            status.update(step)
            current.append((step, time.perf_counter()))

        try:
            yield begin
        except BaseException:
            finish("[red]✗[/red]")
            raise
        finish("[green]✓[/green]")


def training(metrics: dict[str, Any], folder: Path) -> None:
    """Show what a checkpoint scored."""
    table = Table("", *metrics["test"], title=f"{metrics['protocol']}, {metrics['n_test_users']} users")
    for split in ("validation", "test"):
        table.add_row(split, *(f"{value:.4f}" for value in metrics[split].values()))
    out.print(table)
    epochs = f"{metrics['epochs']} epochs, the best was {metrics['best_epoch']}"
    out.print(f"{metrics['parameters']:,} parameters, {metrics['train_seconds']:.0f} s, {epochs}; in {folder}")


def manifest(manifest: Manifest, repository: Path) -> None:
    """Show what a repository holds."""
    table = Table(show_header=False, title=f"{repository}", title_justify="left")
    table.add_row("model", f"{manifest.architecture}, {manifest.precision}, D = {manifest.dim}")
    table.add_row("catalogue", f"{manifest.n_items:,} items, {manifest.n_users:,} known users")
    table.add_row("history", f"the last {manifest.max_history} items")
    table.add_row("created", manifest.created)
    for split in ("validation", "test"):
        if split in manifest.metrics:
            table.add_row(split, _numbers(manifest.metrics[split]))
    table.add_row("against the module", _numbers(manifest.parity))
    table.add_row("built with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()))
    out.print(table)

    engines = Table("target", "runtime", "precision", "file", "bytes", "build s", title="engines", title_justify="left")
    names = {name.split("/", 2)[-1]: record for name, record in manifest.files.items()}
    for target, engine in manifest.engines.items():
        size = f"{names[engine.file].bytes:,}" if engine.file in names else "-"
        runtime = f"{engine.runtime} {engine.runtime_version}"
        engines.add_row(target, runtime, engine.precision, engine.file, size, f"{engine.build_s:.1f}")
    out.print(engines)

    files = Table("file", "bytes", "SHA-256", title="files", title_justify="left")
    for name, record in manifest.files.items():
        files.add_row(name, f"{record.bytes:,}", record.sha256[:16] + "…")
    out.print(files)


def serving(manifest: Manifest, server: Server) -> None:
    """Show where a server listens."""
    address = server.address
    out.print(
        f"serving {server.repository.name}: {manifest.architecture}, {manifest.precision}, {manifest.n_items:,} items"
    )
    out.print(f"  gRPC     {address.host}:{address.grpc_port}")
    out.print(f"  HTTP     http://{address.host}:{address.http_port}")
    out.print(f"  metrics  http://{address.host}:{address.metrics_port}/metrics")
    out.print(f"  log      {server.log}")
    port = "" if address.grpc_port == 8001 else f" --url {address.host}:{address.grpc_port}"
    out.print(f"try: fuserec recommend --user 42 -k 10{port}      Ctrl-C stops the server")


def recommendations(answer: Recommendations, catalogue: Catalogue | None) -> None:
    """Show recommended items, with titles where a catalogue is at hand."""
    if answer.fallback:
        out.print("nothing is known of this user: these are the most popular items", style="yellow")
    table = Table("#", "item", "score", *(["title", "genres"] if catalogue else []))
    for place, (item_id, score) in enumerate(answer, start=1):
        about = [catalogue.title(item_id), catalogue.genres(item_id)] if catalogue else []
        table.add_row(str(place), str(item_id), f"{score:.4f}", *about)
    out.print(table)
    if missing := len(answer.item_ids) - len(answer):
        out.print(f"{missing} fewer than asked for: no other items are left", style="yellow")
    if answer.ignored:
        out.print(f"{answer.ignored} ids of history and exclude are not in the catalogue", style="yellow")
    if catalogue is None:
        out.print("no titles: give --items REPOSITORY or items.parquet", style="dim")
    out.print(f"model version {answer.model_version}", style="dim")


TREATMENTS = {
    "rows_without_user": "rows without a user, left out",
    "rows_without_item": "rows without an item, left out",
    "rows_without_time": "rows without a time, left out",
    "rows_without_rating": "rows whose rating is missing or no number, left out",
    "rows_out_of_order": "rows earlier than the row before, so all are sorted by time",
    "duplicate_rows": "duplicate rows, left out",
    "item_rows_without_id": "rows of items without an id, left out",
    "item_rows_repeated": "rows of items that came before, left out",
    "items_added": "items that the item file lacks, added with their id as title",
    "titles_missing": "items without a title, which becomes their id",
    "texts_cut": "texts cut to 4,000 characters",
    "items_never_consumed": "items that nobody consumed, kept",
    "users_not_evaluated": "users with fewer than 3 interactions, learned from and not evaluated",
}


def imported(report: Imported, folder: Path) -> None:
    """Show what was made of a user's own files."""
    columns = Table("file", "column", "is taken for")
    for file, parts in report.columns.items():
        for part, column in parts.items():
            note = f", as {report.times}" if part == "time" else ""
            columns.add_row(file, column, part + note)
    out.print(columns)
    for name, count in report.treated.items():
        if count:
            out.print(f"{TREATMENTS[name]}: {count:,}", style="yellow")
    out.print(f"{report.interactions:,} interactions of {report.users:,} users with {report.items:,} items in {folder}")
    out.print(
        f"from {report.first} to {report.last}; the numbers of ids are in ids_users.parquet and ids_items.parquet"
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
    out.print(_rates("position", report.positions))
    out.print(_rates("model version", report.versions))
    if report.already_known:
        out.print(f"{report.already_known:,} actions are known already or repeated, left out", style="yellow")
    if report.items_added:
        out.print(f"{report.items_added:,} items are not described, added with their id as title", style="yellow")
    out.print(f"{report.interactions:,} interactions{' with ratings' if report.has_ratings else ''} in {folder}")


def _malformed(what: str, malformed: Malformed) -> None:
    if malformed.lines:
        some = ", ".join(map(str, malformed.lines[:5])) + (", ..." if len(malformed.lines) > 5 else "")
        lines = f"{len(malformed.lines):,} malformed lines among the {what}, left out: {some}; the first: "
        out.print(lines + malformed.reason, style="yellow", markup=False)


def _rates(by: str, rates: list[Rate]) -> Table:
    table = Table(by, "answers", "shown", "acted on", "rate")
    for rate in rates:
        table.add_row(rate.of, f"{rate.answers:,}", f"{rate.shown:,}", f"{rate.acted:,}", f"{rate.rate:.2%}")
    return table


def _numbers(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float))
