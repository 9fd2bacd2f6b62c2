"""What a ranker adds to a retriever: `python -m bench.reranking --data DIR --retriever CKPT --ranker CKPT`.

The retriever's best items are ordered anew by a blend of its score and the ranker's. The weight of the blend is chosen
on the validation items alone; the figures are of the test items. The interval is of the difference, by a bootstrap
over users.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench._output import add_output_options, report
from fuserec.export.blend import choose_weight, ndcg, target_ranks
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.ranker import HEADS, Ranker
from fuserec.models.retriever import Retriever
from fuserec.serve.blending import blend
from fuserec.train.data import DataSet, read_folder
from fuserec.train.ragged import IntArray, Ragged
from fuserec.train.split import Split, leave_one_out

_K = 10
_CHUNK = 64
_RESAMPLES = 2000


@dataclass(frozen=True)
class Candidates:
    """What a retriever found for each user, as `blend` takes it.

    Attributes:
        retrieval: (U, C) float32, -inf where the catalogue has no more.
        rank: (U, C) float32.
        target: (U,) int64, column of the item that was chosen, -1 if it was not found.
    """

    retrieval: NDArray[np.float32]
    rank: NDArray[np.float32]
    target: IntArray


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.reranking", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the data folder both were trained on")
    parser.add_argument("--retriever", type=Path, required=True, help="checkpoint that finds the candidates")
    parser.add_argument("--ranker", type=Path, nargs="+", required=True, help="checkpoints of rankers")
    parser.add_argument("--candidates", type=int, default=200, help="how many the retriever finds")
    add_output_options(parser)
    return parser.parse_args(arguments)


@torch.no_grad()
def candidates(
    retriever: Retriever, ranker: Ranker, split: Split, histories: Ragged, targets: IntArray, count: int
) -> Candidates:
    """Let the retriever find `count` unseen items for each evaluated user and the ranker score them."""
    head = HEADS.index(ranker.heads[0])
    items = retriever.item_vectors()
    parts = []
    for first in range(0, len(histories), _CHUNK):
        rows = np.arange(first, min(first + _CHUNK, len(histories)))
        user = torch.from_numpy(split.evaluated[rows] + 1)
        read = [torch.from_numpy(histories.left_padded(rows, m.config.max_history)) for m in (retriever, ranker)]
        scores = retriever.user_tower(user, read[0]) @ items.T
        seen = histories.take(rows)
        scores[seen.row_of_value, seen.values - 1] = -torch.inf
        best = scores.topk(min(count, scores.shape[1]), dim=1)
        found = best.indices + 1
        is_target = found == torch.from_numpy(targets[rows])[:, None]
        column = torch.where(is_target.any(dim=1), is_target.int().argmax(dim=1), -1)
        parts.append((best.values, ranker.rank_tower(user, read[1], found)[..., head], column))
    retrieval, rank, target = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return Candidates(retrieval, rank, target)


def rerank(dataset: DataSet, retriever: Retriever, ranker: Ranker, count: int) -> dict[str, Any]:
    """Choose the weight on the validation items and return what it does to the test items."""
    split = leave_one_out(dataset)
    held = candidates(retriever, ranker, split, split.validation_histories, split.validation_targets, count)
    chosen = choose_weight(held.retrieval, held.rank, held.target)
    test = candidates(retriever, ranker, split, split.test_histories, split.test_targets, count)
    before, after, alone = (
        target_ranks(blend(test.retrieval, test.rank, weight), test.target) for weight in (0.0, chosen.weight, 1.0)
    )
    gain = ndcg(after, _K) - ndcg(before, _K)
    draws = np.random.default_rng(0).integers(0, gain.size, (_RESAMPLES, gain.size))
    low, high = np.quantile(gain[draws].mean(axis=1), [0.025, 0.975])
    return {
        "weight": chosen.weight,
        "found": round(float((test.target >= 0).mean()), 4),
        "ndcg_before": round(float(ndcg(before, _K).mean()), 4),
        "ndcg_after": round(float(ndcg(after, _K).mean()), 4),
        "gain_low": round(float(low), 4),
        "gain_high": round(float(high), 4),
        "hr_before": round(float((before <= _K).mean()), 4),
        "hr_after": round(float((after <= _K).mean()), 4),
        "ndcg_alone": round(float(ndcg(alone, _K).mean()), 4),
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each ranker."""
    dataset = read_folder(options.data)
    loaded = Checkpoint.load(options.retriever)
    retriever = loaded.module()
    assert isinstance(retriever, Retriever), f"{loaded.architecture} finds no items"
    for path in options.ranker:
        checkpoint = Checkpoint.load(path)
        ranker = checkpoint.module()
        assert isinstance(ranker, Ranker), f"{path} holds a {checkpoint.architecture}; expected a ranker"
        names = {"retriever": loaded.architecture, "ranker": checkpoint.architecture}
        yield names | rerank(dataset, retriever, ranker, options.candidates)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each ranker, and write what was asked for."""
    options = parse(arguments)
    report(rows(options), csv_path=options.csv, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
