"""What each recipe is worth and costs: `python -m bench.quality --data build/movielens-100k --work build/quality`.

Trains each recipe with its defaults, exports it, and asks it through the pipeline that serves, on this machine's CPU.
A recipe whose checkpoint is in `--work` already is not trained again, so that a run can be cut short and gone on with.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench._output import add_output_options, log, report
from fuserec.contract import NO_ID, RANK
from fuserec.export import ExportConfig, export_checkpoint
from fuserec.manifest import Manifest, bundle_folder
from fuserec.models.checkpoint import Checkpoint
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.ranking import RankQuery, RankStage
from fuserec.serve.users import NO_IDS, Users
from fuserec.train.data import DataSet, read_folder
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run

_QUERIES = 300
_K = 10
_CANDIDATES = 200
_MOST_MS = 30_000.0
# Those that learn from interactions; what a dialogue scores cannot stand beside it.
_RECIPES = [name for name, recipe in RECIPES.items() if recipe.read is read_folder]
_METRICS = ("ndcg@10", "hr@10", "mrr@10", "coverage@10")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder, as `fuserec data` writes it")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and exports")
    parser.add_argument("--recipe", nargs="+", choices=_RECIPES, default=_RECIPES, help="recipes to run")
    parser.add_argument("--epochs", type=int, help="at most; each recipe's own if left out")
    parser.add_argument("--precision", default="fp32", help="of the exported graph: fp32 or fp16")
    add_output_options(parser)
    return parser.parse_args(arguments)


def checkpoint_of(recipe: str, dataset: DataSet, folder: Path, epochs: int | None) -> Checkpoint:
    """Load the checkpoint in `folder`, after training it if there is none."""
    if not folder.exists():
        log(f"training {recipe}")
        options = RECIPES[recipe].config_type(**({} if epochs is None else {"epochs": epochs}))
        RECIPES[recipe].train(dataset, options, Run(progress=sys.stderr.isatty())).save(folder)
    return Checkpoint.load(folder)


def latency_ms(bundle: Path) -> float:
    """Return the median time of the front door for one known user a call, in this process.

    That of a ranker puts `_CANDIDATES` items in order; the others recommend `_K`.
    """
    call = _ranking(bundle) if Manifest.read(bundle).models[0] == RANK else _recommending(bundle)
    users = pl.read_parquet(bundle / "users.parquet")["user_id"].head(_QUERIES).to_list()
    times = []
    for user_id in [NO_ID, *users]:  # the first call is a warm-up
        start = time.perf_counter()
        call(user_id)
        times.append(1e3 * (time.perf_counter() - start))
        if sum(times) > _MOST_MS and len(times) > 2:
            break
    return float(np.median(times[1:]))


def _recommending(bundle: Path) -> Callable[[int], object]:
    pipeline = Pipeline.open(bundle)
    return lambda user_id: pipeline.recommend([Query(user_id, NO_IDS, NO_IDS, _K)])


def _ranking(bundle: Path) -> Callable[[int], object]:
    manifest = Manifest.read(bundle)
    stage, users = RankStage.open(bundle, manifest), Users.load(bundle, manifest)
    assert stage is not None
    items = pl.read_parquet(bundle / "items.parquet", columns=["item_id"])["item_id"]
    candidates = items.sample(min(_CANDIDATES, len(items)), seed=0).to_numpy()
    return lambda user_id: stage.rank([RankQuery(user_id, NO_IDS, candidates)], users)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each recipe."""
    dataset = read_folder(options.data)
    for recipe in options.recipe:
        folder = options.work / recipe
        checkpoint = checkpoint_of(recipe, dataset, folder, options.epochs)
        repository = options.work / f"{recipe}-repository"
        export_checkpoint(folder, repository, ExportConfig(precision=options.precision))
        bundle = bundle_folder(repository)
        index = bundle / "index.safetensors"
        metrics = checkpoint.metrics
        yield (
            {"recipe": recipe}
            | {name: round(metrics["test"][name], 4) if name in metrics["test"] else None for name in _METRICS}
            | {
                "epochs": metrics["best_epoch"],
                "train_s": metrics["train_seconds"],
                "parameters": metrics["parameters"],
                "graph_bytes": sum(path.stat().st_size for path in (bundle / "engines").glob("*.cpu.onnx")),
                "index_bytes": index.stat().st_size if index.exists() else 0,
                "call_ms": round(latency_ms(bundle), 3),
            }
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipes, print a line as each is done, and write what was asked for."""
    options = parse(arguments)
    report(rows(options), csv_path=options.csv, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
