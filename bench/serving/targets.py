"""What the rows are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.serving.contenders import NO_OP, OURS
from bench.serving.measure import CLOSED, OPEN, Row, saturated
from bench.serving.repositories import LARGE, SMALL

MOST_OVER_NOOP: Final = 1.5
LEAST_OVER_RIVAL: Final = {SMALL: 1.0, LARGE: 3.0}
TAIL_SHARE_PCT: Final = 70
MOST_TAIL: Final = 5.0


@dataclass(frozen=True)
class Target:
    """A ratio and its limit.

    Attributes:
        what: What is divided by what.
        ratio: As measured.
        limit: The most it may be, or the least.
        is_least: Which of the two.
    """

    what: str
    ratio: float
    limit: float
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the ratio keeps the limit."""
        return self.ratio >= self.limit if self.is_least else self.ratio <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.is_least else "<="
        return f"{'met   ' if self.is_met else 'MISSED'}  {self.ratio:6.2f} {sign} {self.limit:.1f}  {self.what}"


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return those targets that the rows say something about."""
    found = []
    for catalogue in (SMALL, LARGE):
        here = [row for row in rows if row["catalogue"] == catalogue]
        alone = {row["contender"]: row["p50_ms"] for row in here if row["load"] == CLOSED and row["concurrency"] == 1}
        if catalogue == SMALL and {OURS, NO_OP} <= alone.keys():
            what = f"{catalogue}: p50 at concurrency 1, over the no-op's"
            found.append(Target(what, alone[OURS] / alone[NO_OP], MOST_OVER_NOOP))
        rival = next((row["contender"] for row in here if row["contender"].startswith("rival")), None)
        if rival is not None:
            what = f"{catalogue}: saturated throughput, over that of {rival}"
            ratio = saturated(here, OURS) / saturated(here, rival)
            found.append(Target(what, ratio, LEAST_OVER_RIVAL[catalogue], is_least=True))
        for row in here:
            if row["contender"] == OURS and row["load"] == OPEN and row["share_pct"] == TAIL_SHARE_PCT:
                what = f"{catalogue}: p99 at {TAIL_SHARE_PCT} % of saturation, over p50"
                found.append(Target(what, row["p99_ms"] / row["p50_ms"], MOST_TAIL))
    return found
