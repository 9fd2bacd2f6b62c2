"""What a teacher is worth to a small student: `python -m bench.distillation --data build/data --work build/distill`.

Trains the teacher, then the student alone and taught, once for each seed, exports them in fp32 and asks them through
the pipeline that serves, on this machine's CPU. What is in `--work` already is not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench._output import log, report
from bench.quality import latency_ms
from fuserec.export import ExportConfig, export_checkpoint
from fuserec.manifest import bundle_folder
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import read_folder
from fuserec.train.distill import STUDENTS
from fuserec.train.recipes import RECIPES, distilled, parse_settings
from fuserec.train.run import Run

SMALL: Final = ("dim=32", "dropout=0.2")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.distillation", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder, as `fuserec data` writes it")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and exports")
    parser.add_argument("--teacher", default="gru4rec", help="a checkpoint folder, or a recipe to train one by")
    parser.add_argument("--student", default="gru4rec", choices=list(STUDENTS), help="recipe of the student")
    parser.add_argument("--set", nargs="*", default=list(SMALL), help="options of the student, NAME=VALUE")
    parser.add_argument("--distill", nargs="*", default=[], help="options of the distillation, NAME=VALUE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the students")
    parser.add_argument("--epochs", type=int, help="at most, for teacher and students; the recipes' own if left out")
    parser.add_argument("--csv", type=Path, help="write the rows here")
    return parser.parse_args(arguments)


def train_once(folder: Path, train: Callable[[], Checkpoint]) -> None:
    """Train what `folder` is to hold, unless it is there already."""
    if not folder.exists():
        log(f"training {folder.name}")
        train().save(folder)


def measure(model: str, seed: int, folder: Path, repository: Path) -> dict[str, Any]:
    """Return a row of the table for the checkpoint in a folder, exporting it to a repository."""
    checkpoint = Checkpoint.load(folder)
    export_checkpoint(folder, repository, ExportConfig(precision="fp32"))
    bundle = bundle_folder(repository)
    test, validation = checkpoint.metrics["test"], checkpoint.metrics["validation"]
    return {
        "model": model,
        "seed": seed,
        "valid_ndcg": round(validation["ndcg@10"], 4),
        "ndcg@10": round(test["ndcg@10"], 4),
        "hr@10": round(test["hr@10"], 4),
        "parameters": checkpoint.metrics["parameters"],
        "graph_bytes": (bundle / "engines" / "user_tower.cpu.onnx").stat().st_size,
        "index_bytes": (bundle / "index.safetensors").stat().st_size,
        "recommend_ms": round(latency_ms(bundle), 3),
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the teacher, then for each seed the student alone and taught."""
    dataset, run = read_folder(options.data), Run(progress=sys.stderr.isatty())
    limit = {} if options.epochs is None else {"epochs": options.epochs}
    folder = Path(options.teacher)
    if options.teacher in RECIPES:
        folder = options.work / f"teacher-{options.teacher}"
        recipe = RECIPES[options.teacher]
        train_once(folder, partial(recipe.train, dataset, recipe.options(limit), run))
    teacher = Checkpoint.load(folder)
    yield measure("teacher", teacher.metrics["recipe"]["seed"], folder, options.work / "teacher-repository")

    recipes = {"alone": RECIPES[options.student], "taught": distilled(options.student, teacher)}
    settings = {"alone": options.set, "taught": [*options.set, *options.distill]}
    for seed in options.seeds:
        for way, recipe in recipes.items():
            given = {**parse_settings(recipe, settings[way]), **limit, "seed": seed}
            folder = options.work / f"{options.student}-{way}-{seed}"
            train_once(folder, partial(recipe.train, dataset, recipe.options(given), run))
            yield measure(way, seed, folder, folder.with_name(f"{folder.name}-repository"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line as each model is done, and write what was asked for."""
    options = parse(arguments)
    report(rows(options), csv_path=options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
