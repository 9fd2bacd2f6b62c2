"""What the measured times are held to: one row an aim, with what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.device._rows import Row, read_rows

Got = Callable[[Sequence[Row], Sequence[Row]], float | None]  # rows of times.csv and of served.csv
MET, MISSED, UNKNOWN = "met", "missed", "not measured"
# Columns of the table that is printed: one line a cell.
COLUMNS: Final = (
    "rows", "dim", "k", "batch", "excluded", "dtype", "place", "device_us", "host_us", "limit_us", "of_limit_pct",
    "predicted_us", "over_predicted", "x_device", "best_rival_device", "x_host", "best_rival_host", "certified_pct",
    "rescored_rows", "loses",
)  # fmt: skip


@dataclass(frozen=True)
class Aim:
    """One aim.

    Attributes:
        what: In words.
        limit: The least that is wanted, or the most.
        got: Returns the figure of a run's rows, None where they do not say.
        at_most: The limit is the most.
    """

    what: str
    limit: float
    got: Got
    at_most: bool = False

    def row(self, times: Sequence[Row], served: Sequence[Row]) -> Row:
        """Return what came of it."""
        value = self.got(times, served)
        verdict = UNKNOWN
        if value is not None:
            verdict = MET if (value <= self.limit if self.at_most else value >= self.limit) else MISSED
        sign = "<=" if self.at_most else ">="
        return {"aim": self.what, "wanted": f"{sign} {self.limit:g}", "got": value, "result": verdict}


def ours(times: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return our measured rows of these cells."""
    base = {"excluded": 0, "dtype": "float32", "place": "device"} | wanted
    return [
        row
        for row in times
        if row["contender"] == "fuserec" and row["state"] == "measured" and all(row[key] == base[key] for key in base)
    ]


def _least(column: str, batches: Sequence[int], **wanted: Any) -> Got:
    """Return the least of a column over batches; None where one of them was not measured."""

    def got(times: Sequence[Row], served: Sequence[Row]) -> float | None:
        found = [row.get(column) for batch in batches for row in ours(times, batch=batch, **wanted)]
        if len(found) < len(batches) or any(value is None for value in found):
            return None
        return min(float(value) for value in found if value is not None)

    return got


def _over(contender: str, **wanted: Any) -> Got:
    """Return how many times longer the best of some contenders took on the device."""

    def got(times: Sequence[Row], served: Sequence[Row]) -> float | None:
        mine = ours(times, **wanted)
        cell = {"excluded": 0, "dtype": "float32", "place": "device"} | wanted
        theirs = [
            row["device_us"]
            for row in times
            if str(row["contender"]).startswith(contender)
            and row.get("device_us")
            and all(row[key] == cell[key] for key in cell)
        ]
        if not mine or not mine[0].get("device_us") or not theirs:
            return None
        return round(float(min(theirs) / mine[0]["device_us"]), 3)

    return got


def _small_table(times: Sequence[Row], served: Sequence[Row]) -> float | None:
    """Return how many times as long as the best rival the worst cell of the small table takes."""
    cells = ours(times, rows=10_000, dim=64)
    found = [row[column] for row in cells for column in ("x_device", "x_host") if row.get(column)]
    return round(1.0 / float(min(found)), 3) if len(cells) >= 12 and found else None


def _rows_on_host(times: Sequence[Row], served: Sequence[Row]) -> float | None:
    """Return the largest ratio of the times with the rows on the host and on the device."""
    ratios = []
    for batch in (1, 8, 64):
        cell = {"rows": 10_000_000, "dim": 128, "k": 100, "batch": batch}
        here, there = ours(times, **cell, place="host"), ours(times, **cell)
        clock = "device_us" if here and there and here[0].get("device_us") and there[0].get("device_us") else "host_us"
        if not here or not there:
            return None
        ratios.append(here[0][clock] / there[0][clock])
    return round(float(max(ratios)), 3)


def _served(times: Sequence[Row], served: Sequence[Row]) -> float | None:
    """Return our saturated throughput at ten million items over that of the rival."""
    here = [row for row in served if row.get("items") == 10_000_000 and row.get("saturated_qps")]
    at = {row["contender"]: row["saturated_qps"] for row in here}
    mine = [value for name, value in at.items() if str(name).startswith("fuserec") and value]
    theirs = [value for name, value in at.items() if not str(name).startswith("fuserec") and value]
    return round(float(max(mine) / max(theirs)), 3) if mine and theirs else None


AIMS: Final = (
    Aim("10M x 128, k 100, batch 1 to 16: codes over time, % of the copy bandwidth", 70,
        _least("codes_of_copy_pct", (1, 8, 16), rows=10_000_000, dim=128, k=100)),
    Aim("1M x 128, k 100, batch 1, host to host: times the best rival", 2,
        _least("x_host", (1,), rows=1_000_000, dim=128, k=100)),
    Aim("1M x 128, k 100, batch 64, host to host", 5, _least("x_host", (64,), rows=1_000_000, dim=128, k=100)),
    Aim("1M x 128, k 100, batch 1024, host to host", 3, _least("x_host", (1024,), rows=1_000_000, dim=128, k=100)),
    *(aim for k in (128, 1024) for aim in (
        Aim(f"5M x 768, batch 64, k {k}: times eager torch", 3, _over("eager", rows=5_000_000, dim=768, batch=64, k=k)),
        Aim(f"5M x 768, batch 64, k {k}: times the compiled rival", 1,
            _over("compiled", rows=5_000_000, dim=768, batch=64, k=k)),
    )),
    Aim("10k x 64: the worst cell, times the best rival's time", 1.1, _small_table, at_most=True),
    Aim("10M x 128, k 100: rows on the host over rows on the device", 1.3, _rows_on_host, at_most=True),
    Aim("recommend at 10M items: saturated throughput over FastAPI and torch", 3, _served),
)  # fmt: skip


def evaluate(out: Path) -> list[Row]:
    """Return a row an aim, of what a run left in its folder."""
    times, served = read_rows(out / "times.csv"), read_rows(out / "served.csv")
    return [aim.row(times, served) for aim in AIMS]


def line(found: Sequence[Row]) -> str:
    """Return a cell in one line: its times, and the best of the others."""
    mine = found[0]
    where = f"{mine['rows']:>10,} x {mine['dim']:<4} k {mine['k']:<4} batch {mine['batch']:<4}"
    where += f" out {mine['excluded']:<3} {mine['dtype']} {mine['place']:<6}"
    if mine["state"] != "measured":
        return f"{where} {mine['state']}"
    took = f"device {mine['device_us'] or '-'} us, host {mine['host_us']} us"
    versus = f"x {mine.get('x_device') or '-'} / {mine.get('x_host') or '-'} {mine.get('best_rival_host') or ''}"
    return f"{where} {took}, {versus}{'  LOSES' if mine['loses'] else ''}"
