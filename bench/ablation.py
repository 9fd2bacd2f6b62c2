"""What each option of the two-tower is worth: `python -m bench.ablation --data build/movielens-100k --csv FILE`.

Each loss with the negatives that suit it, each kind of negatives with InfoNCE, then the other options one at a time.
A variant whose checkpoint is in `--work` already is not trained again, so that a run can be cut short and gone on with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench._output import add_output_options, log, report
from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.train.data import DataSet, read_folder
from fuserec.train.evaluation import K, rank_users
from fuserec.train.ragged import IntArray
from fuserec.train.run import Run
from fuserec.train.split import Split, leave_one_out
from fuserec.train.two_tower import TwoTowerRecipe, train_two_tower

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "softmax": {"loss": "softmax", "negatives": "catalogue"},
    "softmax-sampled": {"loss": "softmax", "negatives": "uniform"},
    "bpr": {"loss": "bpr", "negatives": "uniform"},
    "margin": {"loss": "margin", "negatives": "uniform"},
    "margin-hard": {"loss": "margin", "negatives": "hard"},
    "uniform": {"negatives": "uniform"},
    "popularity": {"negatives": "popularity"},
    "hard": {"negatives": "hard"},
    "mixed": {"negatives": "mixed"},
    "long-tail": {"long_tail": 0.5},
    "noise": {"noise": 0.3},
    "adversarial": {"adversarial": 0.3},
    "crop": {"crop": 0.5},
    "reorder": {"reorder": 0.5},
    "mask": {"mask": 0.2},
}
POPULAR_SHARE: Final = 0.2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder, as `fuserec data` writes it")
    parser.add_argument("--work", type=Path, default=Path("build/ablation"), help="folder for the checkpoints")
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="what to train")
    parser.add_argument("--epochs", type=int, help="at most; the recipe's own if left out")
    parser.add_argument("--seed", type=int, default=0)
    add_output_options(parser)
    parser.add_argument("--plot", type=Path, help="draw NDCG@10 and the share of the long tail here (PNG)")
    return parser.parse_args(arguments)


def checkpoint_of(recipe: TwoTowerRecipe, dataset: DataSet, folder: Path) -> Checkpoint:
    """Load the checkpoint in `folder`, after training it if there is none.

    Raises:
        UsageError: if the one that is there was trained with other options.
    """
    if not folder.exists():
        log(f"training {folder.name}")
        train_two_tower(dataset, recipe, Run(progress=sys.stderr.isatty())).save(folder)
    checkpoint = Checkpoint.load(folder)
    if TwoTowerRecipe(**checkpoint.metrics["recipe"]) != recipe:
        raise UsageError(f"{folder} was trained with other options; expected another --work or none there")
    return checkpoint


def recommended(model: Retriever, split: Split) -> IntArray:
    """Return the item rows that the test users are shown, as one array."""
    top = rank_users(model, split.evaluated + 1, split.test_histories, split.test_targets, K).top
    shown: IntArray = top[top >= 0].numpy() + 1
    return shown


def long_tail_share(shown: IntArray, split: Split) -> float:
    """Return which part of `shown` is not of the fifth of the catalogue that was consumed most in training."""
    counts = np.bincount(split.train.values, minlength=split.item_ids.size + 1)[1:]
    popular = np.argsort(-counts, kind="stable")[: int(POPULAR_SHARE * counts.size)] + 1
    return float(1.0 - np.isin(shown, popular).mean())


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each variant."""
    dataset = read_folder(options.data)
    split = leave_one_out(dataset)
    common = {"seed": options.seed} | ({} if options.epochs is None else {"epochs": options.epochs})
    for name in options.variant:
        recipe = TwoTowerRecipe(**VARIANTS[name] | common)
        checkpoint = checkpoint_of(recipe, dataset, options.work / name)
        model = checkpoint.module()
        assert isinstance(model, Retriever)
        metrics = checkpoint.metrics
        other = [f"{key}={value}" for key, value in VARIANTS[name].items() if key not in ("loss", "negatives")]
        yield {
            "variant": name,
            "loss": recipe.loss,
            "negatives": recipe.negatives,
            "other": " ".join(other),
            "validation": round(metrics["validation"]["ndcg@10"], 4),
            "ndcg@10": round(metrics["test"]["ndcg@10"], 4),
            "hr@10": round(metrics["test"]["hr@10"], 4),
            "coverage@10": round(metrics["test"]["coverage@10"], 4),
            "long_tail": round(long_tail_share(recommended(model, split), split), 4),
            "best_epoch": metrics["best_epoch"],
            "epochs": metrics["epochs"],
            "train_s": metrics["train_seconds"],
        }


def plot(path: Path, table: Sequence[dict[str, Any]]) -> None:
    """Draw a bar a variant for NDCG@10 and one for the share of the long tail."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.35 * len(table) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [row["variant"] for row in table]
    for panel, column, text in zip(
        panels, ("ndcg@10", "long_tail"), ("NDCG@10 on test", "share of the least popular 80 %"), strict=True
    ):
        bars = panel.barh(names, [row[column] for row in table])
        panel.bar_label(bars, fmt="%.3f", padding=2)
        panel.margins(x=0.14)  # room for the numbers
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel(text)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, print a line as each is done, and write what was asked for."""
    options = parse(arguments)
    table = report(rows(options), csv_path=options.csv, as_json=options.json)
    if options.plot:
        plot(options.plot, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
