"""Times the search beside its rivals: `python -m bench.search --rows 1000000 --dim 128 --k 100 --batch 1 8 64 1024`.

Rounds are interleaved: in each, every contender answers the same queries once, so that what else the machine does falls
on all alike. Medians are printed, one row a case, with the limit that the machine sets.

The OpenMP threads of one rival would spin for a while after its turn and take cores from the next, as each brings its
own OpenMP (faiss took 4.8 s in place of 0.23 s, B = 64). OMP_WAIT_POLICY=passive, set here for all, stops that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from bench import _limits
from bench._output import add_output_options, log, write_csv
from bench._rivals import RIVALS, Floats, Search, without
from fuserec.files import replacing_file
from fuserec.kernels import ItemIndex
from fuserec.kernels.search import _numba_tile

_SECONDS_A_CASE = 8.0
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when a rival is imported


@dataclass(frozen=True)
class Case:
    """What one row of the table is about."""

    rows: int = 1_000_000
    dim: int = 128
    k: int = 100
    batch: int = 1
    metric: str = "dot"
    exclude: int = 0


_BATCHES = (1, 8, 64, 1024)
# One thing varied at a time, and the small table with every k: what `--sweep` runs.
_SWEEP = (
    Case(),
    Case(k=1),
    Case(k=10),
    Case(k=1000),
    Case(exclude=100),
    Case(metric="cosine"),
    Case(dim=64),
    Case(dim=256),
    *(Case(rows=10_000, k=k) for k in (1, 10, 100, 1000)),
    Case(rows=10_000_000, dim=64),
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=_count, nargs="+", default=[Case.rows], help="items, N; several: several cases")
    parser.add_argument("--dim", type=_count, nargs="+", default=[Case.dim], help="columns, D")
    parser.add_argument("--k", type=_count, nargs="+", default=[Case.k], help="items asked for")
    parser.add_argument("--batch", type=_count, nargs="+", default=list(_BATCHES), help="queries a call, B")
    parser.add_argument("--metric", choices=["dot", "cosine"], default="dot", help="rivals get unit vectors for cosine")
    parser.add_argument(
        "--exclude", type=int, default=0, help="seen items a query; rivals ask for k more and drop them"
    )
    parser.add_argument(
        "--sweep", action="store_true", help="vary rows, dim, k, metric and exclude one at a time; 13 cases a batch"
    )
    parser.add_argument(
        "--rivals", nargs="*", choices=sorted(RIVALS), default=["faiss", "torch"], help="to time beside"
    )
    parser.add_argument("--threads", type=_count, default=2, help="threads each contender may use")
    parser.add_argument("--rounds", type=_count, default=15, help="most rounds a case; slow cases get at least 3")
    parser.add_argument("--plot", type=Path, help="draw latency against batch and rows here (PNG), from the rows")
    add_output_options(parser)
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer of at least 1")
    return int(text)


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases that were asked for, those of one table next to each other."""
    if options.sweep:
        return [replace(case, batch=batch) for case in _SWEEP for batch in options.batch]
    sizes = itertools.product(options.rows, options.dim, options.batch, options.k)
    return [Case(rows, dim, k, batch, options.metric, options.exclude) for rows, dim, batch, k in sizes]


def measure(searches: dict[str, Search], queries: Floats, k: int, most_rounds: int) -> dict[str, npt.NDArray[Any]]:
    """Return the milliseconds of each round, by contender."""
    start = time.perf_counter()
    for search in searches.values():
        search(queries, k)
    rounds = int(np.clip(_SECONDS_A_CASE / (time.perf_counter() - start), 3, most_rounds))
    times: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            begin = time.perf_counter()
            search(queries, k)
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: np.array(values) for name, values in times.items()}


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run every case and yield its row."""
    numba.set_num_threads(options.threads)
    limits = {
        "read_gb_s": _limits.read_bytes_a_second(options.threads) / 1e9,
        "peak_gmac_s": _limits.multiply_adds_a_second(options.threads) / 1e9,
    }
    log(f"{_limits.hardware()}, {_numba_tile.ISA}; " + ", ".join(f"{key} {limits[key]:.1f}" for key in limits))
    for (rows, dim, metric), group in itertools.groupby(cases(options), lambda it: (it.rows, it.dim, it.metric)):
        rng = np.random.default_rng(0)
        items = rng.standard_normal((rows, dim), dtype=np.float32)
        if metric == "cosine":
            items /= np.linalg.norm(items, axis=1, keepdims=True)
        index = ItemIndex.build(items, metric=metric)
        rivals: dict[str, Search] = {}
        for name in options.rivals:
            rivals |= RIVALS[name](items, options.threads)
        for case in group:
            row = _timed(case, index, rivals, rng, options.rounds)
            yield row | _against_limits(index, row, limits)
        del rivals, index, items


def _timed(
    case: Case, index: ItemIndex, rivals: dict[str, Search], rng: np.random.Generator, most_rounds: int
) -> dict[str, Any]:
    queries = rng.standard_normal((case.batch, case.dim), dtype=np.float32)
    if case.metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exclude = rng.integers(0, case.rows, (case.batch, case.exclude)) if case.exclude else None
    answer = index.search(queries, case.k, exclude=exclude, backend="cpu")
    searches: dict[str, Search] = {"fuserec": lambda q, k: index.search(q, k, exclude=exclude, backend="cpu")}
    searches |= {name: without(search, exclude) for name, search in rivals.items()}
    times = measure(searches, queries, case.k, most_rounds)
    row: dict[str, Any] = vars(case) | {"rounds": len(times["fuserec"])}
    for name, values in times.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        row |= {f"{name}_ms": round(median, 3), f"{name}_iqr_ms": round(high - low, 3)}
    for name in rivals:
        row[f"x_{name}"] = round(row[f"{name}_ms"] / row["fuserec_ms"], 2)
    row |= {"certified": float(answer.certified.mean()), "rescored": round(float(answer.rescored.mean()), 1)}
    return row


def _against_limits(index: ItemIndex, row: dict[str, Any], limits: dict[str, float]) -> dict[str, Any]:
    """Return the limits, the time that they allow for a case, and how much of the one that binds was reached."""
    assert index.codes is not None
    read_ms = index.codes.nbytes / limits["read_gb_s"] / 1e6
    compute_ms = row["batch"] * index.rows * index.dim / limits["peak_gmac_s"] / 1e6
    limit_ms = max(read_ms, compute_ms)
    return {
        "limit": "read" if read_ms >= compute_ms else "int8",
        "limit_ms": round(limit_ms, 3),
        "of_limit_pct": round(100 * limit_ms / row["fuserec_ms"], 1),
    } | {name: round(value, 1) for name, value in limits.items()}


def _contenders(row: dict[str, Any]) -> list[str]:
    return [key[:-3] for key in row if key.endswith("_ms") and f"{key[:-3]}_iqr_ms" in row]


def table_lines(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield the heading and a line a row: limit first, then each contender as median (spread) and how often ours."""
    for at, row in enumerate(rows):
        ours, *others = _contenders(row)
        cells = {key: str(row[key]) for key in ("rows", "dim", "k", "batch", "metric", "exclude")}
        cells["limit ms"] = f"{row['limit_ms']:.2f} {row['limit']}"
        cells[f"{ours} ms"] = f"{row[f'{ours}_ms']:.2f} ({row[f'{ours}_iqr_ms']:.2f})"
        for name in others:
            timing = f"{row[f'{name}_ms']:.2f} ({row[f'{name}_iqr_ms']:.2f})"
            cells[f"{name} ms"] = f"{timing} {row[f'x_{name}']:.1f}x"
        cells |= {"of limit": f"{row['of_limit_pct']:.0f} %", "certified": f"{row['certified']:.0%}"}
        cells |= {"rescored": str(row["rescored"]), "rounds": str(row["rounds"])}
        widths = [max(len(name), 24 if name.endswith(" ms") and name[:-3] in others else 8) for name in cells]
        if at == 0:
            yield "  ".join(name.rjust(width) for name, width in zip(cells, widths, strict=True))
        yield "  ".join(value.rjust(width) for value, width in zip(cells.values(), widths, strict=True))


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw latency against batch and against rows; the physical limit comes first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ["limit", *_contenders(rows[0])]
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    axes = [("batch", "rows", "queries a call"), ("rows", "batch", "items")]
    for panel, (axis, other, label) in zip(panels, axes, strict=True):
        fixed = {key: rows[0][key] for key in (other, "dim", "k", "metric", "exclude")}
        shown = sorted((r for r in rows if all(r[key] == fixed[key] for key in fixed)), key=lambda r: r[axis])
        for name in names:
            style = "k--" if name == "limit" else "o-"
            text = "physical limit" if name == "limit" else name
            panel.plot([r[axis] for r in shown], [r[f"{name}_ms"] for r in shown], style, label=text, linewidth=1.5)
        panel.set(xscale="log", yscale="log", xlabel=label, ylabel="ms a call, median")
        panel.set_title(", ".join(f"{key} = {value:,}" for key, value in list(fixed.items())[:3]))
        panel.grid(visible=True, which="both", alpha=0.2)
    panels[0].legend()
    figure.suptitle(f"Exact top-k, {_limits.hardware()}")
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print a line as each is done, and write what was asked for."""
    options = parse(arguments)
    log("versions: " + ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch", "faiss-cpu")))
    rows: list[dict[str, Any]] = []

    def collected() -> Iterator[dict[str, Any]]:
        for row in run(options):
            rows.append(row)
            if options.csv:  # again after every case, so that a run cut short has what it measured
                write_csv(options.csv, rows)
            yield row

    for line in table_lines(collected()):
        (log if options.json else print)(line)
        sys.stdout.flush()
    if options.plot:
        plot(options.plot, rows)
    if options.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
