"""Compile all that a search calls without running any of it, also for a processor that is not this one.

`python -m fuserec.kernels.search._numba_ahead` does so for the processor that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
name, and prints how many functions it had to compile. The arguments are made as a search makes them, so that they have
the types of its calls; `tests/kernels/test_compiled.py` has searches find everything compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import typeof
from numba.core import event

from fuserec.kernels._arrays import counted, read_only
from fuserec.kernels.filters import as_row_filter
from fuserec.kernels.packed import pack
from fuserec.kernels.quantize import quantize_rows
from fuserec.kernels.query import as_pool
from fuserec.kernels.search import _numba, _numba_rows
from fuserec.kernels.search._numba_candidates import allocate_candidates
from fuserec.kernels.search._numba_known import Asked, Known, search_known
from fuserec.kernels.search._numba_lookup import People, allocate_looked_up, look_up
from fuserec.kernels.search._numba_queries import allocate_asked
from fuserec.kernels.search._numba_run import Plan, prepare, work
from fuserec.kernels.search._numba_score import Bags, Out


def compile_all() -> int:
    """Compile what is not kept already, and return how many functions that were, those that others call included."""
    with event.install_recorder("numba:compile") as recorder:
        _compile_all()
    return sum(happened.is_start for _, happened in recorder.buffer)


def _compile_all() -> None:
    items = np.eye(4, dtype=np.float32)
    codes = pack(quantize_rows(items), items)
    pool, filters = as_pool(items[:1], 4), as_row_filter(None, None, ids=counted(4), batch=1)
    bags = Bags(read_only(pool.table), read_only(pool.ids), read_only(pool.offsets), read_only(pool.weights))
    out = Out(read_only(filters.offsets), read_only(filters.rows), read_only(filters.allow))
    table, answers, edges = _numba.as_table(items, codes), _numba.allocate_answers(1, 1), _numba.edges_of(4, 1)
    plan = Plan(1, False, 1, 1, 16, 1)
    _compile(allocate_asked, 0, 1, 1, 1)
    _compile(allocate_candidates, 0, 0, 0, 0)
    prepared = _compile(prepare, bags, 0, 1, 1, plan, table, answers)
    heaps = _numba.NO_HEAPS
    _compile_types(work, *_types(0, 0, 1, table, bags, out, 0, 1, edges, plan), prepared, *_types(heaps, answers))
    rows = _numba_rows.Heaps(np.empty((1, 1, 1), np.int64), np.empty((1, 1), np.float64))
    parts = _numba_rows.Parts(edges, edges)
    _compile(_numba_rows.scan_part, 0, read_only(items), bags, False, out, parts, rows)
    known = Known(read_only(items), read_only(counted(1)), read_only(counted(1)), read_only(counted(1)))
    people = People(*[read_only(counted(1))] * 7)
    _compile(look_up, people, *[np.zeros(1, np.int64)] * 5, allocate_looked_up(1, 1), counted(1).copy())
    asked = Asked(*[read_only(counted(1))] * 4)
    _compile(search_known, known, table, plan, asked, 1, 0.0, 1.0, answers)


def _types(*arguments: object) -> list[Any]:
    return [typeof(argument) for argument in arguments]  # type: ignore[no-untyped-call]


def _compile(function: Callable[..., object], *arguments: object) -> Any:
    return _compile_types(function, *_types(*arguments))


def _compile_types(function: Any, *types: Any) -> Any:
    """Compile a function for arguments of some types, and return the type of what it returns."""
    function.compile(types)
    return function.overloads[types].signature.return_type


if __name__ == "__main__":
    sys.stdout.write(f"{compile_all()}\n")
