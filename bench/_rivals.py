"""The libraries that a search is timed against, behind one call; each is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Search = Callable[[Floats, int], Any]

_TORCH_SCORES_BYTES = 1 << 30  # torch writes all scores of a chunk of queries before it selects


def faiss_searches(items: Floats, threads: int) -> dict[str, Search]:
    """IndexFlatIP as it comes, and with matrix products only from 800 queries a thread on."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)

    def search_with(threshold: int) -> Search:
        def search(queries: Floats, k: int) -> Any:
            faiss.cvar.distance_compute_blas_threshold = threshold
            return index.search(queries, k)[1]

        return search

    default = int(faiss.cvar.distance_compute_blas_threshold)
    return {"faiss": search_with(default), "faiss-tuned": search_with(800 * threads)}


def torch_searches(items: Floats, threads: int) -> dict[str, Search]:
    """topk(q @ E.T), in chunks of queries whose scores fit in a gibibyte."""
    import torch

    torch.set_num_threads(threads)
    table = torch.from_numpy(items)
    chunk = max(_TORCH_SCORES_BYTES // (4 * len(items)), 1)

    def search(queries: Floats, k: int) -> Any:
        parts = [torch.from_numpy(queries[at : at + chunk]) for at in range(0, len(queries), chunk)]
        return np.concatenate([torch.topk(part @ table.T, k).indices.numpy() for part in parts])

    return {"torch": search}


def usearch_searches(items: Floats, threads: int) -> dict[str, Search]:
    """The exact search of usearch, by inner product."""
    try:
        from usearch.compiled import MetricKind
        from usearch.index import search as exact
    except ImportError as error:
        raise SystemExit(
            "rival usearch: not installed; it comes with the extra `bench`, or leave it out of --rivals"
        ) from error

    def search(queries: Floats, k: int) -> Any:
        return exact(items, queries, k, MetricKind.IP, exact=True, threads=threads).keys

    return {"usearch": search}


RIVALS = {"faiss": faiss_searches, "torch": torch_searches, "usearch": usearch_searches}


def without(search: Search, exclude: npt.NDArray[np.int64] | None) -> Search:
    """Return `search` as its users filter seen items (B, S): ask for k + S, and drop what is seen afterwards."""
    if exclude is None:
        return search
    seen = exclude

    def filtered(queries: Floats, k: int) -> Any:
        found = search(queries, k + seen.shape[1])
        kept = [row[~np.isin(row, ids)][:k] for row, ids in zip(found, seen, strict=True)]
        return np.stack(kept)

    return filtered
