"""Blocks of load become rows: at each load all contenders take turns, round after round.

What else the machine does then falls on all of them; a row holds medians over the rounds, and how far these lie apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.serving.contenders import Contender
from bench.serving.generator import Generator
from bench.serving.load import Load, Outcome

Row = dict[str, Any]
CLOSED: Final = "closed"
OPEN: Final = "open"


@dataclass(frozen=True)
class Plan:
    """What is measured of a catalogue.

    Attributes:
        concurrencies: Of the closed loops.
        shares: Loads of the open loops, in percent of what the same contender answered at most in a closed one.
        seconds: Of a block.
        rounds: Blocks of each contender at each load.
        warm_s: Seconds before each block that are not counted.
    """

    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    shares: tuple[float, ...] = (10, 30, 50, 70, 80, 90, 100)
    seconds: float = 5.0
    rounds: int = 3
    warm_s: float = 0.5

    def __post_init__(self) -> None:
        if not self.concurrencies or min(self.concurrencies) < 1:
            raise ValueError(f"concurrencies came as {self.concurrencies}, expected numbers of at least 1")
        if any(share <= 0 for share in self.shares):
            raise ValueError(f"shares came as {self.shares}, expected percentages above 0")
        if self.rounds < 1 or self.seconds <= 0:
            raise ValueError(f"{self.rounds} rounds of {self.seconds} s came, expected more than none")


def closed_loops(
    generator: Generator, contenders: Sequence[Contender], plan: Plan, about: Mapping[str, Any]
) -> Iterator[Row]:
    """Yield a row a contender at each concurrency."""
    for concurrency in plan.concurrencies:
        loads = [{"concurrency": concurrency}] * len(contenders)
        for contender, blocks in _rounds(generator, contenders, loads, plan):
            yield _row(about, contender, CLOSED, {"concurrency": concurrency}, blocks)


def open_loops(
    generator: Generator, contenders: Sequence[Contender], plan: Plan, about: Mapping[str, Any], rows: Sequence[Row]
) -> Iterator[Row]:
    """Yield a row a contender at each share of its saturated throughput, as the closed loops in `rows` have it."""
    most = {contender.name: saturated(rows, contender.name) for contender in contenders}
    for share in plan.shares:
        loads = [{"rate": most[contender.name] * share / 100} for contender in contenders]
        for (contender, blocks), load in zip(_rounds(generator, contenders, loads, plan), loads, strict=True):
            said = {"share_pct": share, "offered_qps": round(load["rate"], 1)}
            yield _row(about, contender, OPEN, said, blocks)


def saturated(rows: Sequence[Row], contender: str) -> float:
    """Return the highest throughput of a contender over the closed loops in `rows`."""
    return max(float(row["qps"]) for row in rows if row["load"] == CLOSED and row["contender"] == contender)


@dataclass(frozen=True)
class _Block:
    outcome: Outcome
    batch: float | None  # mean rows a batch, where the server says


def _rounds(
    generator: Generator, contenders: Sequence[Contender], loads: Sequence[Mapping[str, Any]], plan: Plan
) -> list[tuple[Contender, list[_Block]]]:
    blocks: dict[str, list[_Block]] = {contender.name: [] for contender in contenders}
    pairs = list(zip(contenders, loads, strict=True))
    for number in range(plan.rounds):
        first = number % len(pairs)  # nobody always comes after the same one
        for contender, load in pairs[first:] + pairs[:first]:
            rows, batches = contender.batches()
            outcome = generator.run(
                Load(
                    protocol=contender.protocol,
                    port=contender.port,
                    bodies=str(contender.bodies),
                    server_pid=contender.pid,
                    seconds=plan.seconds,
                    warm_s=plan.warm_s,
                    seed=number,
                    **load,
                )
            )
            rows_after, batches_after = contender.batches()
            formed = batches_after - batches
            blocks[contender.name].append(_Block(outcome, (rows_after - rows) / formed if formed else None))
    return [(contender, blocks[contender.name]) for contender in contenders]


def _row(
    about: Mapping[str, Any], contender: Contender, load: str, said: Mapping[str, Any], blocks: Sequence[_Block]
) -> Row:
    row: Row = {**about, "contender": contender.name, "protocol": contender.protocol, "load": load}
    row |= {"concurrency": None, "share_pct": None, "offered_qps": None} | dict(said)
    row["rounds"] = len(blocks)
    for name, digits in (("qps", 1), ("p50_ms", 3), ("p90_ms", 3), ("p99_ms", 3)):
        values = [getattr(block.outcome, name) for block in blocks]
        row[name] = round(float(np.median(values)), digits)
        row[f"{name}_spread"] = round(max(values) - min(values), digits)
    row["max_ms"] = round(max(block.outcome.max_ms for block in blocks), 1)
    row["answered"] = sum(block.outcome.answered for block in blocks)
    errors = [f"{count} {reason}" for block in blocks for reason, count in block.outcome.errors.items()]
    row["errors"] = sum(count for block in blocks for count in block.outcome.errors.values())
    row["what"] = "; ".join(errors)
    for name in ("server_cores", "generator_cores", "lag_p99_ms"):
        row[name] = round(float(np.median([getattr(block.outcome, name) for block in blocks])), 3)
    batches = [block.batch for block in blocks if block.batch is not None]
    row["batch"] = round(float(np.median(batches)), 2) if batches else None
    return row
