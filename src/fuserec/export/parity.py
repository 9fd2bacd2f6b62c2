"""How far an exported graph is from the module it came from, in numbers and in ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fuserec.export.parts import Part
from fuserec.kernels import ItemIndex
from fuserec.serve.engines import OnnxRuntimeEngine

TOP = 10

Floats = NDArray[np.float32]


def compare(graph: Path, part: Part, index: ItemIndex | None) -> dict[str, float]:
    """Compare what a graph and the module say of the part's inputs for checking.

    Args:
        graph: the exported graph.
        part: the module and its inputs.
        index: the items that vectors are to find; None for a part that scores candidates.

    Returns:
        `max_abs_error`; for vectors also `mean_cosine`; and `overlap@10`: the share of the ten best items by the module
        that are among the graph's, averaged.
    """
    engine = OnnxRuntimeEngine(graph)
    came = [engine.run(feed)[part.output] for feed in part.check]
    expected = [part.run(feed) for feed in part.check]
    error = max(float(np.abs(a - b).max()) for a, b in zip(came, expected, strict=True))
    if index is None:
        best = [[_best(scores[..., part.order]) for scores in pair] for pair in zip(came, expected, strict=True)]
        overlaps = [_overlap(a, b) for a, b in best]
        return {"max_abs_error": error, f"overlap@{TOP}": float(np.mean(overlaps))}
    vectors, wanted = np.concatenate(came), np.concatenate(expected)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = (vectors * wanted).sum(axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)
    return {
        "max_abs_error": error,
        "mean_cosine": float(cosine.mean()),
        f"overlap@{TOP}": _overlap(index.search(vectors, TOP).ids, index.search(wanted, TOP).ids),
    }


def _best(scores: Floats) -> NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def _overlap(came: NDArray[np.int64], expected: NDArray[np.int64]) -> float:
    shared = [len(np.intersect1d(a, b)) / len(b) for a, b in zip(came, expected, strict=True)]
    return float(np.mean(shared))
