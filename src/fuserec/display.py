"""What the command shows a person: tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from fuserec.catalogue import Catalogue
    from fuserec.client import Ranked, Recommendations
    from fuserec.manifest import Manifest
    from fuserec.serve.launcher import Server

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Steps:
    """Shows each step as it begins, with a bar where it is known how far it is, and with its seconds when it is done.

    Called with a step, it ends the one before.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._step = ""
        self._start = 0.0

    def __call__(self, step: str) -> None:
        """Begin a step."""
        self.finish("[green]✓[/green]")
        self._step, self._start = step, time.perf_counter()
        self._progress.reset(self._task, total=None, description=step)

    def advance(self, done: int, total: int, what: str) -> None:
        """Say how much of the step is done, and what was done last."""
        self._progress.update(self._task, completed=done, total=total, description=f"{self._step} {what}".rstrip())

    def finish(self, mark: str) -> None:
        """End the step."""
        if self._step:
            self._progress.console.print(f"{mark} {self._step} [dim]{time.perf_counter() - self._start:.1f} s[/dim]")
            self._step = ""


@contextlib.contextmanager
def steps() -> Iterator[Steps]:
    """Yield what is told of each step as it begins; the steps are shown on stderr."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, console=err, transient=True) as progress:
        shown = Steps(progress)
        try:
            yield shown
        except BaseException:
            shown.finish("[red]✗[/red]")
            raise
        shown.finish("[green]✓[/green]")


@contextlib.contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of `total` are done; a bar on stderr shows it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=not err.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)


def training(metrics: dict[str, Any], folder: Path) -> None:
    """Show what a checkpoint scored."""
    asked = "questions" if metrics.get("recipe_name") == "dialogue" else "users"
    table = Table("", *metrics["test"], title=f"{metrics['protocol']}, {metrics['n_test_users']} {asked}")
    for split in ("validation", "test"):
        table.add_row(split, *(f"{value:.4f}" for value in metrics[split].values()))
    baseline = metrics.get("baselines", {}).get("popularity", {})
    if baseline:
        shown = [f"{baseline[name]:.4f}" if name in baseline else "" for name in metrics["test"]]
        table.add_row("popularity, test", *shown)
    out.print(table)
    epochs = f"{metrics['epochs']} epochs, the best was {metrics['best_epoch']}"
    out.print(f"{metrics['parameters']:,} parameters, {metrics['train_seconds']:.0f} s, {epochs}; in {folder}")
    if privacy := metrics.get("privacy"):
        out.print(
            f"private for users: epsilon {privacy['epsilon']:.2f} at delta {privacy['delta']:g}; {privacy['covers']}"
        )
    if pruning := metrics.get("pruning"):
        out.print(f"pruned: {_numbers(pruning)}")
    for note in ("continued", "transferred"):
        if note in metrics:
            out.print(f"{note}: before training, on validation  {_numbers(metrics[note]['before']['validation'])}")


def shrunk(told: dict[str, Any]) -> None:
    """Show what making a checkpoint smaller cost, on stderr: what follows on stdout is of the export."""
    stages = {"before": "as it was", "untuned": "smaller"}
    if told["fine_tuned"]:
        stages["after"] = f"fine-tuned, {told['epochs']} epochs"
    shown = {what: told[stage] for stage, what in stages.items() if told[stage]}
    parameters = told["parameters"]
    taken = f"{told['prune']:.0%} of the hidden units and {told['dropped_layers']} layers taken out"
    title = f"{taken}: {parameters['before']:,} parameters are {parameters['after']:,}"
    if not shown:
        err.print(title)
        return
    table = Table("", *next(iter(shown.values()))["test"], title=title, title_justify="left")
    for what, scores in shown.items():
        for split in ("validation", "test"):
            table.add_row(f"{what}, {split}", *(f"{value:.4f}" for value in scores[split].values()))
    err.print(table)


def manifest(manifest: Manifest, repository: Path, versions: Sequence[int]) -> None:
    """Show what one version of a repository holds; `versions` are all that there are."""
    table = Table(show_header=False, title=f"{repository}", title_justify="left")
    others = ", ".join(str(version) for version in versions if version != manifest.version)
    table.add_row("version", f"{manifest.version}, also there: {others}" if others else str(manifest.version))
    table.add_row("model", f"{manifest.architecture}, {manifest.precision}, D = {manifest.dim}")
    table.add_row("catalogue", f"{manifest.n_items:,} items, {manifest.n_users:,} known users")
    if manifest.max_history:
        lengths = ", ".join(f"{n} by the {part.replace('_', ' ')}" for part, n in manifest.max_history.items())
        table.add_row("items read", lengths)
    table.add_row("created", manifest.created)
    for split in ("validation", "test"):
        if split in manifest.metrics:
            table.add_row(split, _numbers(manifest.metrics[split]))
    if baseline := manifest.metrics.get("baselines", {}).get("popularity"):
        table.add_row("popularity, test", _numbers(baseline))
    if manifest.rerank is not None:
        reordered = f"the best {manifest.rerank.candidates}, with a weight of {manifest.rerank.weight:g}; NDCG@10 of"
        reordered += f" {manifest.rerank.users} users"
        table.add_row("the ranker reorders", f"{reordered}  {_numbers(manifest.rerank.ndcg)}")
    table.add_row("built with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()))
    out.print(table)

    columns = ("part", "target", "precision", "NDCG@10", "lost", "overlap", "bytes")
    engines = Table(*columns, title="engines", title_justify="left")
    built = [(part, *entry) for part, network in manifest.parts.items() for entry in network.engines.items()]
    for part, target, engine in built:
        size = f"{manifest.files[f'{manifest.models[0]}/{engine.file}'].bytes:,}"
        quality = engine.quality
        judged = [
            _or_dash(quality["ndcg"], ".4f"),
            _or_dash(quality["loss"], ".2%"),
            _or_dash(quality["overlap"], ".1%"),
        ]
        engines.add_row(part.replace("_", " "), target, engine.precision, *judged, size)
    out.print(engines)

    files = Table("file", "bytes", "SHA-256", title="files", title_justify="left")
    for name, record in manifest.files.items():
        files.add_row(manifest.path_of(name), f"{record.bytes:,}", record.sha256[:16] + "…")
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


def facts(found: dict[str, str]) -> None:
    """Show names and what belongs to each."""
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name, value)
    out.print(table)


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


def ranked(answer: Ranked, catalogue: Catalogue | None) -> None:
    """Show candidates in the ranker's order."""
    rated = any(map(math.isfinite, answer.ratings))
    table = Table("#", "item", "score", *(["rating"] if rated else []), *(["title", "genres"] if catalogue else []))
    for place, ((item_id, score), rating) in enumerate(zip(answer, answer.ratings.tolist(), strict=True), start=1):
        about = [catalogue.title(item_id), catalogue.genres(item_id)] if catalogue else []
        table.add_row(str(place), str(item_id), f"{score:.4f}", *([f"{rating:.2f}"] if rated else []), *about)
    out.print(table)
    if answer.ignored:
        out.print(f"{answer.ignored} ids of history and candidates are not in the catalogue", style="yellow")
    out.print(f"model version {answer.model_version}", style="dim")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _numbers(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float))
