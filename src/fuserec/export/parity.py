"""How far an exported graph is from the module it came from, in numbers and in ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fuserec.contract import MAX_BATCH
from fuserec.export.histories import Histories
from fuserec.export.precision import batches
from fuserec.kernels import ItemIndex
from fuserec.serve.engines import OnnxRuntimeEngine

TOP = 10


def compare(graph: Path, tower: nn.Module, index: ItemIndex, histories: Histories) -> dict[str, float]:
    """Compare the vectors of a graph with the module's, and the items each would find.

    Returns:
        `max_abs_error` and `mean_cosine` of the vectors, and `overlap@10`: the share of the module's ten best items
        that the graph finds too, averaged over the histories.
    """
    feeds = batches(histories.users, histories.items, MAX_BATCH)
    engine = OnnxRuntimeEngine(graph)
    came = np.concatenate([engine.run(feed)["user_vector"] for feed in feeds])
    with torch.inference_mode():
        expected = np.concatenate(
            [tower(torch.from_numpy(feed["user"]), torch.from_numpy(feed["history"])).numpy() for feed in feeds]
        )
    norms = np.linalg.norm(came, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = (came * expected).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return {
        "max_abs_error": float(np.abs(came - expected).max()),
        "mean_cosine": float(cosine.mean()),
        f"overlap@{TOP}": _overlap(index.search(came, TOP).ids, index.search(expected, TOP).ids),
    }


def _overlap(came: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    shared = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(came, expected, strict=True)]
    return float(np.mean(shared))
