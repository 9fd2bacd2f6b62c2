"""What a timing is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Median and spread (the middle half) of the rounds, in microseconds."""

    median_us: float
    spread_us: float
    rounds: int
