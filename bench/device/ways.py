"""The ways to ask the search under test: from the host, on the device, with the rows on the host, by number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from bench.device.cases import Question, Way
from fuserec.contract import NO_ID
from fuserec.kernels import ItemIndex, KnownQueries, Lookup, TopK
from fuserec.kernels._arrays import end_to_end

Backend = Literal["cuda", "interpret", "cpu", "reference"]
Answering = Callable[[ItemIndex, Question], TopK]


def searcher(way: Way, backend: Backend) -> Answering:
    """Return what answers questions in a way; all but "host" need "cuda" or "interpret" for `backend`."""
    return partial(_WAYS[way], backend=backend)


def _from_host(index: ItemIndex, question: Question, *, backend: Backend) -> TopK:
    return index.search(question.query, question.k, exclude=question.exclude, allow=question.allow, backend=backend)


def _rows_on_host(index: ItemIndex, question: Question, *, backend: Backend) -> TopK:
    if not index._resident:
        index.to(backend, rows="host")
    assert index.on_device(backend).rows_on == "host"
    return _from_host(index, question, backend=backend)


def _on_device(index: ItemIndex, question: Question, *, backend: Backend) -> TopK:
    """Ask with tensors, get tensors, and have repaired what is not proven."""
    there = index.on_device(backend)

    def tensor(array: npt.ArrayLike) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(there.device)

    exclude = None
    if question.exclude is not None:
        exclude = tensor(_padded(question.exclude))
    allow = None if question.allow is None else tensor(question.allow)
    found = there.search(tensor(question.query), question.k, exclude=exclude, allow=allow)
    found = there.repair(found)
    arrays = (one.cpu().numpy() for one in (found.ids, found.scores, found.certified, found.rescored))
    return TopK(*arrays)


def _padded(lists: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return lists of ids as one array (B, E)."""
    padded = np.full((len(lists), max(1, *(len(ids) for ids in lists), 1)), NO_ID, np.int64)
    for line, ids in zip(padded, lists, strict=True):
        line[: len(ids)] = ids
    return padded


def _known(index: ItemIndex, question: Question, *, backend: Backend) -> TopK:
    """Ask by number, as a service does of its users: vectors and lists lie on the device."""
    assert isinstance(question.query, Lookup) and question.allow is None
    batch = len(question.query.ids)
    lists = [np.empty(0, np.int64)] * batch if question.exclude is None else question.exclude
    excluded = index.excluded_rows(*end_to_end(lists))
    known = KnownQueries(index, question.query.table, excluded, backend=backend)
    return known.search(np.arange(batch), question.query.ids, question.k)


_WAYS: Final[dict[Way, Callable[..., TopK]]] = {
    "host": _from_host,
    "rows on host": _rows_on_host,
    "device": _on_device,
    "known": _known,
}
