"""Items that nobody was seen to consume: `python -m bench.cold_items --data build/movielens-100k --work build/cold`.

A tenth of the items is taken out of training wholly, as targets and from histories. Each user who consumed one of
them is asked for it, the history being the warm items before it: once among all items, once among the cold ones.
Every tuning starts from the same trained head. Checkpoints in `--work` are not trained again.

Random and popularity stand beside it, averaged over all orders of items that score alike: to popularity all cold
items are alike (nobody consumed them), so among them it is random, and among all items they come last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench._output import add_output_options, log, report
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.text import TextRetriever
from fuserec.train.bootstrap import estimate_means
from fuserec.train.cold import ColdSplit, hold_out_items
from fuserec.train.data import read_folder
from fuserec.train.finetuning import TUNINGS
from fuserec.train.ragged import Ragged
from fuserec.train.recipes import RECIPES, parse_settings
from fuserec.train.run import Run
from fuserec.train.text import probe, tune

K = 10
FloatArray = NDArray[np.float64]
# (E,) hits and gains of each user, and the number of users.
Scores = tuple[FloatArray, FloatArray]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_items", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data folder, as `fuserec data` writes it")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--tuning", nargs="+", choices=TUNINGS, default=list(TUNINGS), help="tunings to run")
    parser.add_argument("--share", type=float, default=0.1, help="of the items to hold out")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any option of the recipe")
    add_output_options(parser)
    return parser.parse_args(arguments)


def by_order(scores: FloatArray, targets: NDArray[np.int64]) -> Scores:
    """Return the expected hit and gain at K of each target, over all orders of candidates that score alike.

    Args:
        scores: (E, C) float64, -inf for what is no candidate.
        targets: (E,) int64 columns.
    """
    own = scores[np.arange(targets.size), targets][:, None]
    better, equal = (scores > own).sum(axis=1), (scores == own).sum(axis=1)
    gains = np.zeros(scores.shape[1] + 1)
    gains[1 : K + 1] = (1.0 / np.log2(np.arange(2, K + 2)))[: scores.shape[1]]
    hits_below = np.minimum(np.arange(gains.size), K)
    gains_below = gains.cumsum()
    hits, gains = ((below[better + equal] - below[better]) / equal for below in (hits_below, gains_below))
    return hits, gains


def row(name: str, scores: FloatArray, split: ColdSplit, **columns: object) -> dict[str, Any]:
    """Score (E, n_items) float64 among all items but those of the history, and among the cold ones."""
    scores = scores.copy()
    scores[split.histories.row_of_value, split.histories.values - 1] = -np.inf
    among_all = by_order(scores, split.targets - 1)
    among_cold = by_order(scores[:, split.cold - 1], np.searchsorted(split.cold, split.targets))
    found: dict[str, Any] = {"model": name}
    for place, pair in (("all", among_all), ("cold", among_cold)):
        estimates = estimate_means(np.stack(pair, axis=1))
        for metric, estimate in zip((f"hr@{K}", f"ndcg@{K}"), estimates, strict=True):
            found[f"{metric} {place}"] = round(estimate.value, 4)
            found[f"{metric} {place} 95%"] = f"{estimate.low:.4f}-{estimate.high:.4f}"
    return found | columns


@torch.no_grad()
def text_scores(model: TextRetriever, histories: Ragged) -> FloatArray:
    """Return the dot products of the users with all items, (E, n_items)."""
    padded = torch.from_numpy(histories.left_padded(np.arange(len(histories)), model.config.max_history))
    users = model.user_tower(torch.zeros(len(histories), dtype=torch.int64), padded)
    scores: FloatArray = (users @ model.item_vectors().T).double().numpy()
    return scores


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each baseline and tuning."""
    split = hold_out_items(read_folder(options.data), options.share, options.seed)
    log(f"{split.cold.size} cold items, {split.targets.size} users")
    counts = split.warm.interactions["item_id"].value_counts()
    rows_of = np.searchsorted(split.warm.items["item_id"].to_numpy(), counts["item_id"].to_numpy())
    popularity = np.zeros((split.targets.size, split.warm.items.height))
    popularity[:, rows_of] = counts["count"].to_numpy()
    none = {"warm ndcg@10": "", "tuned": "", "train_s": ""}
    yield row("random", np.zeros_like(popularity), split, **none)
    yield row("popularity", popularity, split, **none)

    run = Run(progress=sys.stderr.isatty())
    recipe = RECIPES["text"]
    given = parse_settings(recipe, options.set)

    def saved(name: str, make: Callable[[], Checkpoint]) -> Checkpoint:
        if not (options.work / name).exists():
            log(f"training {name}")
            make().save(options.work / name)
        return Checkpoint.load(options.work / name)

    def train(tuning: str) -> Checkpoint:
        settings = recipe.options(given | {"tuning": tuning})
        if tuning == "frozen":
            return probe(split.warm, settings, run)
        return tune(split.warm, settings, saved("frozen", lambda: train("frozen")), run)

    for tuning in options.tuning:
        checkpoint = saved(tuning, lambda tuning=tuning: train(tuning))  # type: ignore[misc]
        metrics, model = checkpoint.metrics, checkpoint.module()
        assert isinstance(model, TextRetriever)
        yield row(
            tuning,
            text_scores(model, split.histories),
            split,
            **{
                "warm ndcg@10": round(metrics["test"]["ndcg@10"], 4),
                "tuned": metrics["tuned_parameters"],
                "train_s": metrics["train_seconds"],
            },
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tunings, print a line as each is done, and write what was asked for."""
    options = parse(arguments)
    report(rows(options), csv_path=options.csv, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
