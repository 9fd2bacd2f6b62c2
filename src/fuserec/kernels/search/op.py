"""The search as the index calls it: choose the backend, launch it, and refuse queries that have no sound answer."""

from __future__ import annotations

import sys
from typing import Any, Final, Literal, get_args

import numpy as np

from fuserec.kernels._arrays import DoubleArray, FloatArray, is_on_device
from fuserec.kernels.filters import RowFilter
from fuserec.kernels.packed import PackedCodes
from fuserec.kernels.query import Pool
from fuserec.kernels.search.found import Found

Backend = Literal["auto", "cpu", "cuda", "interpret", "reference"]
_BACKENDS: Final = get_args(Backend)

_LARGEST = float(np.finfo(np.float32).max)
# Shorter queries would lose digits to float32's smallest numbers before they are normalised.
_SHORTEST = float(np.finfo(np.float32).tiny) / float(np.finfo(np.float32).eps)


def resolve(backend: str) -> str:
    """Return the backend to run; "auto" becomes "cuda" or "cpu".

    "auto" takes the GPU only in a process that has imported torch already and sees a CUDA device: a server that
    searches on the CPU must not pay for torch to find that out.

    Raises:
        ValueError: `backend` is none of the known ones.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(_BACKENDS)}")
    if backend != "auto":
        return backend
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def search(
    items: FloatArray,
    codes: PackedCodes | None,
    pool: Pool,
    out: RowFilter,
    k: int,
    *,
    normalize: bool,
    max_abs: float,
    backend: str,
    resident: dict[str, Any],
) -> Found:
    """Return the k best rows of each query under the total order, found on the CPU; `device.py` has the other way.

    Args:
        items: (N, D) float32, C-contiguous.
        codes: Their codes, or None to scan the rows themselves. The answer is the same.
        pool: The queries; B of them.
        out: Rows that may not be returned.
        k: At least 1; beyond N the answer has a tail.
        normalize: Divide each query by its Euclidean norm (cosine).
        max_abs: Largest absolute value in `items`.
        backend: "cpu" or "reference"; of no queries, any.
        resident: What backends keep from one call to the next; owned by the index.

    Raises:
        ValueError: A query is not finite, is zero where it must be normalised, or could overflow a float32 score; or
            its table is on a device.
    """
    if is_on_device(pool.table):
        raise ValueError(
            f"query table: got a tensor on {pool.table.device}, expected one in host memory for {backend!r}"
        )
    if pool.batch == 0:
        nothing = Found(np.empty((0, k), np.int64), np.empty((0, k), np.float32), np.empty(0))
        return _as_full_scan(nothing, len(items))
    reach = min(k, len(items))
    if backend == "reference":
        from fuserec.kernels.search import reference

        found = reference.search(items, pool, out, reach, normalize=normalize)
    else:
        from fuserec.kernels.search import _numba

        found = _numba.search(items, codes, pool, out, reach, normalize=normalize, resident=resident)
    check_magnitudes(found.magnitudes, normalize=normalize, max_abs=max_abs)
    if found.certified is None:
        found = _as_full_scan(found, len(items))
    return _with_tail(found, k)


def _as_full_scan(found: Found, rows: int) -> Found:
    """Return `found` as what it is when every row was scored: true without a proof."""
    batch = len(found.rows)
    return found._replace(certified=np.ones(batch, np.bool_), rescored=np.full(batch, rows, np.int64))


def sound_magnitudes(*, normalize: bool, max_abs: float) -> tuple[float, float]:
    """Return from where on, and up to where, the sum of a query's absolute values promises sound float32 scores.

    As |q.e| <= sum|q| * max|e|, a product within float32 rules out overflow at any point of any sum.
    """
    return _SHORTEST if normalize else 0.0, _LARGEST / max(max_abs, 1.0)


def check_magnitudes(magnitudes: DoubleArray, *, normalize: bool, max_abs: float) -> None:
    """Refuse what has no sound float32 score: (B,) sums of |q|, which the backends get in passing.

    Raises:
        ValueError: One of them is out of its range, or NaN.
    """
    shortest, longest = sound_magnitudes(normalize=normalize, max_abs=max_abs)
    sound = magnitudes < longest
    if not sound.all():
        b = int(np.argmin(sound))
        raise ValueError(
            f"query {b}: got absolute values summing to {magnitudes[b]}, expected finite values whose scores "
            f"fit float32 (table entries reach {max_abs:.3g})"
        )
    if normalize:
        for b in np.flatnonzero(magnitudes < shortest):
            raise ValueError(
                f"query {b}: got absolute values summing to {magnitudes[b]}, expected at least {shortest:.1g} "
                "for the cosine metric to normalise"
            )


def _with_tail(found: Found, k: int) -> Found:
    missing = k - found.rows.shape[1]
    if missing == 0:
        return found
    rows = np.pad(found.rows, ((0, 0), (0, missing)), constant_values=-1)
    scores = np.pad(found.scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    return found._replace(rows=rows, scores=scores)
