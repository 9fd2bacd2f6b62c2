"""Times the search beside its rivals: `python -m bench.search --rows 1000000 --dim 128 --k 100 --batch 1 8 64 1024`.

Rounds are interleaved: in each, every contender answers the same queries once, so that what else the machine does falls
on all alike. Medians are printed, one row a case, with the limit that the machine sets.

The OpenMP threads of one rival would spin for a while after its turn and take cores from the next, as each brings its
own OpenMP (faiss took 4.8 s in place of 0.23 s, B = 64). OMP_WAIT_POLICY=passive, set here for all, stops that.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from bench import _limits
from bench._rivals import RIVALS, Floats, Search, without
from fuserec.kernels import ItemIndex
from fuserec.kernels.search import _numba_tile

_SECONDS_A_CASE = 8.0
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when a rival is imported


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.search", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="items, N; several make several cases")
    parser.add_argument("--dim", type=int, nargs="+", default=[128], help="columns, D")
    parser.add_argument("--k", type=int, nargs="+", default=[100], help="items asked for")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 1024], help="queries a call, B")
    parser.add_argument("--metric", choices=["dot", "cosine"], default="dot", help="rivals get unit vectors for cosine")
    parser.add_argument(
        "--exclude", type=int, default=0, help="seen items a query; rivals ask for k more and drop them"
    )
    parser.add_argument(
        "--rivals", nargs="*", choices=sorted(RIVALS), default=["faiss", "torch"], help="to time beside"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads each contender may use")
    parser.add_argument("--rounds", type=int, default=15, help="most rounds a case; slow cases get at least 3")
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw latency against batch and rows here (PNG), from the rows")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args(arguments)


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


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every case and return its row."""
    numba.set_num_threads(options.threads)
    limits = {
        "read_gb_s": _limits.read_bytes_a_second(options.threads) / 1e9,
        "peak_gmac_s": _limits.multiply_adds_a_second(options.threads) / 1e9,
    }
    measured = ", ".join(f"{key} {value:.1f}" for key, value in limits.items())
    _log(f"{_limits.hardware()}, {_numba_tile.ISA}, {measured}")
    rows = []
    for n, dim in itertools.product(options.rows, options.dim):
        rng = np.random.default_rng(0)
        items = rng.standard_normal((n, dim), dtype=np.float32)
        if options.metric == "cosine":
            items /= np.linalg.norm(items, axis=1, keepdims=True)
        index = ItemIndex.build(items, metric=options.metric)
        rivals: dict[str, Search] = {}
        for name in options.rivals:
            rivals |= RIVALS[name](items, options.threads)
        for batch, k in itertools.product(options.batch, options.k):
            row = _case(index, rivals, rng, batch, k, options)
            row |= _against_limits(index, row, limits)
            rows.append(row)
            _log("  ".join(f"{key} {value}" for key, value in row.items()))
        del rivals, index, items
    return rows


def _case(
    index: ItemIndex,
    rivals: dict[str, Search],
    rng: np.random.Generator,
    batch: int,
    k: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    queries = rng.standard_normal((batch, index.dim), dtype=np.float32)
    if options.metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exclude = rng.integers(0, index.rows, (batch, options.exclude)) if options.exclude else None
    answer = index.search(queries, k, exclude=exclude, backend="cpu")
    searches: dict[str, Search] = {"fuserec": lambda q, k: index.search(q, k, exclude=exclude, backend="cpu")}
    searches |= {name: without(search, exclude) for name, search in rivals.items()}
    times = measure(searches, queries, k, options.rounds)
    row: dict[str, Any] = {"rows": index.rows, "dim": index.dim, "k": k, "batch": batch, "metric": options.metric}
    row |= {"exclude": options.exclude, "rounds": len(times["fuserec"])}
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


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw latency against batch and against rows; the limit comes first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = ["limit", *(key[:-3] for key in rows[0] if key.endswith("_ms") and f"{key[:-3]}_iqr_ms" in rows[0])]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for panel, (axis, others) in zip(
        panels, [("batch", ("rows", "dim", "k")), ("rows", ("batch", "dim", "k"))], strict=True
    ):
        fixed = {key: rows[0][key] for key in others}
        shown = sorted((r for r in rows if all(r[key] == fixed[key] for key in others)), key=lambda r: r[axis])
        for name in names:
            style = "k--" if name == "limit" else "o-"
            panel.plot([r[axis] for r in shown], [r[f"{name}_ms"] for r in shown], style, label=name)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms a call, median")
        panel.set_title(", ".join(f"{key} = {value}" for key, value in fixed.items()))
    panels[0].legend()
    figure.savefig(path, dpi=120)


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and write what was asked for."""
    options = parse(arguments)
    _log("versions: " + ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch", "faiss-cpu")))
    rows = run(options)
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if options.plot:
        plot(options.plot, rows)
    if options.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
