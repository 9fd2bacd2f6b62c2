"""The cells of the table of times, the most important first: a run that is short of time has measured those."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

Dtype = Literal["float32", "float16"]
Place = Literal["device", "host"]


@dataclass(frozen=True)
class Cell:
    """One search that is timed.

    Attributes:
        rows: Items.
        dim: Their width.
        k: Items asked for.
        batch: Queries a call.
        excluded: Items that each query excludes.
        dtype: How the rows are stored.
        place: Where the rows are; the codes are on the device.
        compiled: The compiled rival is timed too: compiling it takes seconds, so it is for the cells of the aims.
    """

    rows: int
    dim: int
    k: int = 100
    batch: int = 1
    excluded: int = 0
    dtype: Dtype = "float32"
    place: Place = "device"
    compiled: bool = False

    @property
    def table(self) -> tuple[int, int, Dtype, Place]:
        """Return what must be built for it."""
        return self.rows, self.dim, self.dtype, self.place

    def cells(self) -> dict[str, int | str]:
        """Return it as rows of the results have it."""
        return {name: getattr(self, name) for name in NAMES}


NAMES: Final = ("rows", "dim", "k", "batch", "excluded", "dtype", "place")
MILLION: Final = Cell(1_000_000, 128)
TEN_MILLION: Final = Cell(10_000_000, 128)
WIDE: Final = Cell(5_000_000, 768)
SMALL: Final = Cell(10_000, 64)
BATCHES: Final = (1, 8, 64, 1024)
KS: Final = (10, 100, 1000)


def aimed() -> list[Cell]:
    """Return the cells that the aims are about."""
    return [
        *(replace(MILLION, batch=batch, compiled=True) for batch in (1, 64, 1024)),
        *(replace(TEN_MILLION, batch=batch, compiled=batch == 1) for batch in (1, 8, 16)),
        *(replace(WIDE, batch=64, k=k, compiled=True) for k in (128, 1024)),
        *(replace(TEN_MILLION, batch=batch, place="host") for batch in (1, 8, 64)),
        replace(TEN_MILLION, batch=64),
        *(replace(SMALL, batch=batch, k=k, compiled=k == 100) for k, batch in itertools.product(KS, BATCHES)),
    ]


def cells() -> list[Cell]:
    """Return all cells, each once, in the order in which they are measured."""
    found = dict.fromkeys([*aimed(), *_around(), *_rest()])
    seen: dict[tuple[object, ...], Cell] = {}
    for cell in found:
        seen.setdefault(tuple(cell.cells().values()), cell)
    return list(seen.values())


def _around() -> Iterator[Cell]:
    """What varies one thing at a time: batch, k, exclusions, storage."""
    for base in (MILLION, TEN_MILLION):
        for batch in BATCHES:
            yield replace(base, batch=batch)
            yield replace(base, batch=batch, excluded=100)
        for k in KS:
            yield replace(base, k=k)
            yield replace(base, k=k, batch=64)
        for batch in BATCHES:
            yield replace(base, batch=batch, dtype="float16")
    for k in (10, 128, 1000):
        yield replace(WIDE, k=k)


def _rest() -> Iterator[Cell]:
    for dtype, place in (("float32", "device"), ("float16", "device"), ("float32", "host")):
        for base, excluded, k, batch in itertools.product((MILLION, TEN_MILLION, SMALL, WIDE), (0, 100), KS, BATCHES):
            yield replace(base, k=k, batch=batch, excluded=excluded, dtype=dtype, place=place)  # type: ignore[arg-type]


def rehearsed() -> list[Cell]:
    """Return a few small cells that take the same ways."""
    base = Cell(640, 16, k=10)
    return [
        Cell(64, 16, k=5, excluded=3),
        replace(base, compiled=True),
        replace(base, batch=3, excluded=5),
        replace(base, batch=3, dtype="float16"),
        replace(base, batch=3, place="host"),
    ]
