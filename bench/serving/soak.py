"""Load for a long time, errors counted and memory watched."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.serving import processes
from bench.serving.contenders import Contender
from bench.serving.generator import Generator
from bench.serving.load import Load, Outcome
from bench.serving.targets import TAIL_SHARE_PCT

_MIB: Final = 2.0**20
# Of the time, at the beginning: pages of the index come in and arenas fill up, which is no leak.
_SETTLING: Final = 0.1
# Below a mebibyte a minute nothing is called a leak.
_NEGLIGIBLE_MIB_H: Final = 60.0


@dataclass(frozen=True)
class Slope:
    """How the memory of a process, or of all, went.

    Attributes:
        name: Of the process.
        first_mib: Resident memory at the beginning, after settling.
        last_mib: At the end.
        mib_h: Slope of the least-squares line, MiB an hour.
        error_mib_h: Its standard error, as if the samples were independent of each other; they are not quite.
    """

    name: str
    first_mib: float
    last_mib: float
    mib_h: float
    error_mib_h: float

    @property
    def is_zero(self) -> bool:
        """Within two standard errors of zero, or below a mebibyte a minute."""
        return abs(self.mib_h) <= 2 * self.error_mib_h or abs(self.mib_h) < _NEGLIGIBLE_MIB_H

    def __str__(self) -> str:
        return (
            f"{self.name:16} {self.first_mib:8.1f} -> {self.last_mib:8.1f} MiB  "
            f"{self.mib_h:8.2f} +- {self.error_mib_h:.2f} MiB/h  {'zero' if self.is_zero else 'NOT ZERO'}"
        )


@dataclass(frozen=True)
class Soaked:
    """What a soak found.

    Attributes:
        rate: Calls a second.
        outcome: Of the load.
        slopes: Of all processes together first, then one by one, of RSS; last the part of all that is not shared.
        samples: Rows of `seconds` and the resident MiB of each process.
    """

    rate: float
    outcome: Outcome
    slopes: list[Slope]
    samples: list[dict[str, Any]]

    def lines(self) -> list[str]:
        """Return the findings as lines."""
        out, errors = self.outcome, sum(self.outcome.errors.values())
        return [
            f"{out.seconds:.0f} s at {self.rate:.0f} calls/s, {TAIL_SHARE_PCT} % of saturation: "
            f"{out.answered} answered, {errors} errors {out.errors or ''}",
            f"p50 {out.p50_ms:.2f} ms, p90 {out.p90_ms:.2f} ms, p99 {out.p99_ms:.2f} ms, max {out.max_ms:.0f} ms; "
            f"server {out.server_cores:.2f} cores, generator {out.generator_cores:.2f}",
            *map(str, self.slopes),
        ]


def soak(generator: Generator, contender: Contender, rate: float, seconds: float, every_s: float = 2.0) -> Soaked:
    """Send calls at a rate for some time and sample the memory of the server's processes meanwhile."""
    load = Load(
        protocol=contender.protocol,
        port=contender.port,
        bodies=str(contender.bodies),
        server_pid=contender.pid,
        seconds=seconds,
        rate=rate,
    )
    pids = processes.tree(contender.pid)
    names = _numbered([processes.name(pid) for pid in pids])
    times, resident, own = [], [], []
    with ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        running = pool.submit(generator.run, load)
        while not running.done() and time.monotonic() < start + seconds:
            sizes = [processes.resident_bytes(pid) for pid in pids]
            times.append(time.monotonic() - start)
            resident.append([size[0] / _MIB for size in sizes])
            own.append(sum(size[1] for size in sizes) / _MIB)
            time.sleep(every_s)
        outcome = running.result()
    at, table, private = np.array(times), np.array(resident), np.array(own)
    settled = at >= _SETTLING * seconds
    at_settled, rest = at[settled], table[settled]
    slopes = [slope("all, RSS", at_settled, rest.sum(axis=1)), slope("all, not shared", at_settled, private[settled])]
    slopes += [slope(name, at_settled, column) for name, column in zip(names, rest.T, strict=True)]
    samples = [
        {"seconds": round(moment, 1), "not shared": round(alone, 2)}
        | {name: round(size, 2) for name, size in zip(names, sizes, strict=True)}
        for moment, alone, sizes in zip(times, own, resident, strict=True)
    ]
    return Soaked(rate, outcome, slopes, samples)


def slope(name: str, seconds: NDArray[np.float64], mib: NDArray[np.float64]) -> Slope:
    """Fit a line through at least three samples by least squares.

    Raises:
        ValueError: There are fewer.
    """
    if len(seconds) < 3:
        raise ValueError(f"{len(seconds)} samples came, expected at least 3; soak for longer")
    hours = seconds / 3600.0
    centred = hours - hours.mean()
    spread = float(centred @ centred)
    per_hour = float(centred @ mib) / spread
    residuals = mib - mib.mean() - per_hour * centred
    error = (float(residuals @ residuals) / (len(mib) - 2) / spread) ** 0.5
    return Slope(name, float(mib[0]), float(mib[-1]), per_hour, error)


def _numbered(names: Sequence[str]) -> list[str]:
    """Tell processes of the same name apart."""
    return [f"{name} {names[:at].count(name) + 1}" if names.count(name) > 1 else name for at, name in enumerate(names)]
