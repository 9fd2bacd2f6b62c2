"""What each recipe is worth and costs: `python -m bench.quality --data build/movielens-100k --work build/quality`.

Trains each recipe with its defaults, exports it, and asks it through the pipeline that serves, on this machine's CPU.
A recipe whose checkpoint is in `--work` already is not trained again, so that a run can be cut short and gone on with.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench._output import log, write_csv
from fuserec.contract import NO_ID
from fuserec.export import ExportConfig, export_checkpoint
from fuserec.manifest import bundle_folder
from fuserec.models.checkpoint import Checkpoint
from fuserec.serve.pipeline import Pipeline, Query
from fuserec.train.data import DataSet, read_folder
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run

_QUERIES = 300
_K = 10
_METRICS = ("ndcg@10", "hr@10", "mrr@10", "coverage@10")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder, as `fuserec data` writes it")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and exports")
    parser.add_argument("--recipe", nargs="+", choices=sorted(RECIPES), default=list(RECIPES), help="recipes to run")
    parser.add_argument("--epochs", type=int, help="at most; each recipe's own if left out")
    parser.add_argument("--precision", default="fp32", help="of the exported graph: fp32 or fp16")
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON in place of the table")
    return parser.parse_args(arguments)


def checkpoint_of(recipe: str, dataset: DataSet, folder: Path, epochs: int | None) -> Checkpoint:
    """Load the checkpoint in `folder`, after training it if there is none."""
    if not folder.exists():
        log(f"training {recipe}")
        options = RECIPES[recipe].config_type(**({} if epochs is None else {"epochs": epochs}))
        RECIPES[recipe].train(dataset, options, Run(progress=sys.stderr.isatty())).save(folder)
    return Checkpoint.load(folder)


def latency_ms(bundle: Path) -> float:
    """Return the median time of `recommend` for one known user a call, in this process."""
    pipeline = Pipeline.open(bundle)
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].head(_QUERIES).to_list()
    nothing = np.empty(0, np.int64)
    times = []
    for user_id in [NO_ID, *users]:  # the first call is a warm-up
        start = time.perf_counter()
        pipeline.recommend([Query(user_id, nothing, nothing, _K)])
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[1:]))


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each recipe."""
    dataset = read_folder(options.data)
    for recipe in options.recipe:
        folder = options.work / recipe
        checkpoint = checkpoint_of(recipe, dataset, folder, options.epochs)
        repository = options.work / f"{recipe}-repository"
        export_checkpoint(folder, repository, ExportConfig(precision=options.precision))
        bundle = bundle_folder(repository)
        metrics = checkpoint.metrics
        yield (
            {"recipe": recipe}
            | {name: round(metrics["test"][name], 4) for name in _METRICS}
            | {
                "epochs": metrics["best_epoch"],
                "train_s": metrics["train_seconds"],
                "parameters": metrics["parameters"],
                "graph_bytes": sum(path.stat().st_size for path in (bundle / "engines").glob("*.cpu.onnx")),
                "index_bytes": (bundle / "index.safetensors").stat().st_size,
                "recommend_ms": round(latency_ms(bundle), 3),
            }
        )


def _line(cells: Sequence[object]) -> str:
    return "".join(str(cell).rjust(13) for cell in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipes, print a line as each is done, and write what was asked for."""
    options = parse(arguments)
    table: list[dict[str, Any]] = []
    for row in rows(options):
        show = log if options.json else print
        if not table:
            show(_line(list(row)))
        table.append(row)
        show(_line(list(row.values())))
        sys.stdout.flush()
        if options.csv:
            write_csv(options.csv, table)
    if options.json:
        print(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
