"""What the command shows a person: tables on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from fuserec.terminal import err, out, print_table, sign, verbatim

if TYPE_CHECKING:
    from fuserec.catalogue import Catalogue
    from fuserec.client import Ranked, Recommendations
    from fuserec.manifest import Manifest
    from fuserec.serve.launcher import Server


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
        self.finish(_mark(done=True))
        self._step, self._start = step, time.perf_counter()
        self._progress.reset(self._task, total=None, description=step)

    def advance(self, done: int, total: int, what: str) -> None:
        """Say how much of the step is done, and what was done last."""
        self._progress.update(self._task, completed=done, total=total, description=f"{self._step} {what}".rstrip())

    def finish(self, mark: Text) -> None:
        """End the step."""
        if self._step:
            seconds = Text(f"{time.perf_counter() - self._start:.1f} s", "dim")
            self._progress.console.print(mark, verbatim(self._step), seconds)
            self._step = ""


def _mark(*, done: bool) -> Text:
    """Return the sign of a step that is done or failed, in words where the stream has no signs."""
    return Text(sign("✓", "done:", err), "green") if done else Text(sign("✗", "failed:", err), "red")


@contextlib.contextmanager
def steps() -> Iterator[Steps]:
    """Yield what is told of each step as it begins; the steps are shown on stderr."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24))
    with Progress(*columns, console=err, transient=True) as progress:
        shown = Steps(progress)
        try:
            yield shown
        except BaseException:
            shown.finish(_mark(done=False))
            raise
        shown.finish(_mark(done=True))


@contextlib.contextmanager
def counting(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more of `total` are done; a bar on stderr shows it."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=not err.is_terminal) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.advance(task, done)


def training(metrics: dict[str, Any], folder: Path) -> None:
    """Show what a checkpoint scored."""
    asked = "questions" if metrics.get("recipe_name") == "dialogue" else "users"
    rows = [(split, *(f"{value:.4f}" for value in metrics[split].values())) for split in ("validation", "test")]
    if baseline := metrics.get("baselines", {}).get("popularity"):
        shown = [f"{baseline[name]:.4f}" if name in baseline else "" for name in metrics["test"]]
        rows.append(("popularity, test", *shown))
    print_table(("", *metrics["test"]), rows, title=f"{metrics['protocol']}, {metrics['n_test_users']} {asked}")
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


def settings(options: Sequence[tuple[str, str, str, str]]) -> None:
    """Show the options of a recipe: name, type, default, meaning."""
    print_table(("--set", "type", "default", "meaning"), options)


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
    rows = [
        (f"{what}, {split}", *(f"{value:.4f}" for value in scores[split].values()))
        for what, scores in shown.items()
        for split in ("validation", "test")
    ]
    print_table(("", *next(iter(shown.values()))["test"]), rows, title=title, console=err)


def manifest(manifest: Manifest, repository: Path, versions: Sequence[int]) -> None:
    """Show what one version of a repository holds; `versions` are all that there are."""
    rows = []
    others = ", ".join(str(version) for version in versions if version != manifest.version)
    rows.append(("version", f"{manifest.version}, also there: {others}" if others else str(manifest.version)))
    rows.append(("model", f"{manifest.architecture}, {manifest.precision}, D = {manifest.dim}"))
    rows.append(("catalogue", f"{manifest.n_items:,} items, {manifest.n_users:,} known users"))
    if manifest.max_history:
        lengths = ", ".join(f"{n} by the {part.replace('_', ' ')}" for part, n in manifest.max_history.items())
        rows.append(("items read", lengths))
    rows.append(("created", manifest.created))
    for split in ("validation", "test"):
        if split in manifest.metrics:
            rows.append((split, _numbers(manifest.metrics[split])))
    if baseline := manifest.metrics.get("baselines", {}).get("popularity"):
        rows.append(("popularity, test", _numbers(baseline)))
    if manifest.rerank is not None:
        reordered = f"the best {manifest.rerank.candidates}, with a weight of {manifest.rerank.weight:g}; NDCG@10 of"
        reordered += f" {manifest.rerank.users} users"
        rows.append(("the ranker reorders", f"{reordered}  {_numbers(manifest.rerank.ndcg)}"))
    rows.append(("built with", ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())))
    print_table(("", ""), rows, title=str(repository))

    engines = []
    for part, network in manifest.parts.items():
        for target, engine in network.engines.items():
            size = f"{manifest.files[f'{manifest.models[0]}/{engine.file}'].bytes:,}"
            quality = engine.quality
            judged = (
                _or_dash(quality["ndcg"], ".4f"),
                _or_dash(quality["loss"], ".2%"),
                _or_dash(quality["overlap"], ".1%"),
            )
            engines.append((part.replace("_", " "), target, engine.precision, *judged, size))
    print_table(("part", "target", "precision", "NDCG@10", "lost", "overlap", "bytes"), engines, title="engines")

    files = [
        (manifest.path_of(name), f"{record.bytes:,}", f"{record.sha256[:16]}...")
        for name, record in manifest.files.items()
    ]
    print_table(("file", "bytes", "SHA-256"), files, title="files")


# Of a server; with fewer it takes hardly more than a thousand callers.
FEW_FILES = 4_096


def serving(manifest: Manifest, server: Server) -> None:
    """Show where a server listens."""
    address = server.address
    out.print(
        f"serving {server.repository.name}: {manifest.architecture}, {manifest.precision}, {manifest.n_items:,} items"
    )
    out.print(f"  device   {server.device}")
    out.print(f"  gRPC     {address.host}:{address.grpc_port}")
    out.print(f"  HTTP     http://{address.host}:{address.http_port}")
    out.print(f"  metrics  http://{address.host}:{address.metrics_port}/metrics")
    out.print(f"  log      {server.log}")
    if server.max_files < FEW_FILES:
        out.print(
            f"  at most {server.max_files:,} open files, connections among them; raise `ulimit -n`", style="yellow"
        )
    port = "" if address.grpc_port == 8001 else f" --url {address.host}:{address.grpc_port}"
    out.print(f"try: fuserec recommend --user 42 -k 10{port}      Ctrl-C stops the server")


def facts(found: dict[str, str]) -> None:
    """Show names and what belongs to each."""
    print_table(("", ""), list(found.items()))


def recommendations(answer: Recommendations, catalogue: Catalogue | None) -> None:
    """Show recommended items, with titles where a catalogue is at hand."""
    if answer.fallback:
        out.print("nothing is known of this user: these are the most popular items", style="yellow")
    rows = []
    for place, (item_id, score) in enumerate(answer, start=1):
        about = [catalogue.title(item_id), catalogue.genres(item_id)] if catalogue else []
        rows.append((place, item_id, f"{score:.4f}", *about))
    print_table(("#", "item", "score", *(["title", "genres"] if catalogue else [])), rows)
    if missing := len(answer.item_ids) - len(answer):
        out.print(f"{missing} fewer than asked for: no other items are left", style="yellow")
    if answer.ignored:
        out.print(
            f"not in the catalogue, and ignored: {answer.ignored} of the ids and categories given", style="yellow"
        )
    if catalogue is None:
        out.print("no titles: give --items REPOSITORY or items.parquet", style="dim")
    out.print(f"model version {answer.model_version}", style="dim")


def ranked(answer: Ranked, catalogue: Catalogue | None) -> None:
    """Show candidates in the ranker's order."""
    rated = any(map(math.isfinite, answer.ratings))
    rows = []
    for place, ((item_id, score), rating) in enumerate(zip(answer, answer.ratings.tolist(), strict=True), start=1):
        about = [catalogue.title(item_id), catalogue.genres(item_id)] if catalogue else []
        rows.append((place, item_id, f"{score:.4f}", *([f"{rating:.2f}"] if rated else []), *about))
    columns = ("#", "item", "score", *(["rating"] if rated else []), *(["title", "genres"] if catalogue else []))
    print_table(columns, rows)
    if answer.ignored:
        out.print(f"not in the catalogue, and ignored: {answer.ignored} of the ids given", style="yellow")
    out.print(f"model version {answer.model_version}", style="dim")


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _numbers(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float))
