"""Tiles that were fastest on a device, as committed data; elsewhere `gpu_config` goes by what compiles well.

An entry comes from a run of `bench/device/run.sh` on a card of that architecture, and says which. An architecture
without one is not timed: its tiles compile without spills, and nobody has seen how fast they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class TimedTiles:
    """Tiles of the int8 scan for some shapes.

    Attributes:
        least_dim: Narrowest rows they are for.
        most_dim: Widest rows they are for.
        most_batch: Largest batch they are for.
        block_q: Queries a program; this and the next four as in `GpuConfig`.
        block_n: Rows a tile.
        block_d: Columns a tile.
        num_warps: Warps a program.
        num_stages: Tiles in flight.
    """

    least_dim: int
    most_dim: int
    most_batch: int
    block_q: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Timed:
    """What was found on one card.

    Attributes:
        card: As its driver names it.
        date: Of the run, as YYYY-MM-DD.
        commit: What ran.
        tiles: The first entry that a shape fits is taken.
    """

    card: str
    date: str
    commit: str
    tiles: tuple[TimedTiles, ...]


# Compute capability, 90 for 9.0, to what was timed there.
TIMED: Final[Mapping[int, Timed]] = {}


def timed_tiles(dim: int, batch: int, arch: int, timed: Mapping[int, Timed] = TIMED) -> TimedTiles | None:
    """Return the tiles that were fastest for such a search on such a device, None where none were timed."""
    found = timed.get(arch)
    if found is None:
        return None
    fitting = (it for it in found.tiles if it.least_dim <= dim <= it.most_dim and batch <= it.most_batch)
    return next(fitting, None)


def status(arch: int, timed: Mapping[int, Timed] = TIMED) -> str:
    """Return what may be said of the speed on an architecture."""
    found = timed.get(arch)
    return "not timed" if found is None else f"timed on {found.card}, {found.date}, commit {found.commit}"
