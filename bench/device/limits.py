"""What this card can do at most, measured in the run whose times are divided by it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.device._rows import read_rows, table
from bench.device._step_options import Told, told
from bench.device._timing import Timing

Measured = Callable[[], tuple[float, Timing]]

# A rehearsal divides by these; no card has them.
MADE_UP = "rehearsal"
_MADE_UP = {"copy": 1000.0, "read": 1000.0, "int8": 100.0, "fp16": 50.0, "bf16": 50.0, "fp32": 10.0, "fp64": 5.0,
            "to device": 20.0, "from device": 20.0, "launch": 5.0, "replay": 5.0, "round trip": 15.0}  # fmt: skip
_UNITS = {"copy": "GB/s", "read": "GB/s", "to device": "GB/s", "from device": "GB/s",
          "launch": "us", "replay": "us", "round trip": "us"}  # fmt: skip
_ABOUT = {
    "copy": "4 GB device to device, bytes read and written",
    "read": "a float32 sum over 4 GB",
    "int8": "product of 8192 x 8192 matrices, random numbers",
    "to device": "256 MB from pinned memory",
    "from device": "256 MB to pinned memory",
    "launch": "an empty kernel on the stream, one after the other",
    "replay": "a graph of one empty kernel, from call to answer",
    "round trip": "4 KB there from pinned memory, 4 KB back, and the wait",
}


@dataclass(frozen=True)
class Limits:
    """The rates that times are held against: bytes and operations a second; a multiply-add is two."""

    copy: float
    read: float
    int8: float
    fp16: float
    fp32: float
    name: str

    @classmethod
    def of(cls, out: Path) -> Limits | None:
        """Return those of a run, None if it did not measure them."""
        found = {row["what"]: row["rate"] for row in read_rows(out / "limits.csv")}
        if not {"copy", "read", "int8", "fp16", "fp32"} <= found.keys():
            return None
        matrix = {name: 1e12 * found[name] for name in ("int8", "fp16", "fp32")}
        made_up = any(row["source"] == MADE_UP for row in read_rows(out / "limits.csv"))
        return cls(1e9 * found["copy"], 1e9 * found["read"], **matrix, name=MADE_UP if made_up else "measured")


def measure(step: Told) -> None:
    """Measure everything, a row each."""
    works = _made_up() if step.rehearse else _measured()
    for what, work in works.items():
        try:
            rate, timing = work()
        except RuntimeError as error:  # no such product here, or too little memory: the others still count
            step.rows.add(what=what, rate=None, unit=_UNITS.get(what, "TOPS"), about=str(error).splitlines()[0][:120])
            continue
        step.rows.add(
            what=what,
            rate=round(rate, 2),
            unit=_UNITS.get(what, "TOPS"),
            median_us=timing.median_us,
            spread_us=timing.spread_us,
            rounds=timing.rounds,
            about=_ABOUT.get(what, _ABOUT["int8"]),
            source=MADE_UP if step.rehearse else "measured",
        )


def _measured() -> dict[str, Measured]:
    from bench.device.card import works  # brings torch

    return works()


def _made_up() -> dict[str, Measured]:
    def work(rate: float) -> Measured:
        return lambda: (rate, Timing(0.0, 0.0, 0))

    return {what: work(rate) for what, rate in _MADE_UP.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    step = told("limits", "The most that this card can do.", arguments)
    measure(step)
    print("\n".join(table(step.rows.rows, ("what", "rate", "unit", "median_us", "spread_us", "rounds", "about"))))
    return 0 if Limits.of(step.out) else 1


if __name__ == "__main__":
    sys.exit(main())
