"""The table of times: the search beside its rivals, interleaved, with the limit and the prediction in the same row."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from bench import roofline
from bench.device import aims, grid, limits, tables
from bench.device._rows import read_rows, table
from bench.device._step_options import Told, told
from bench.device._timing import Timing
from bench.device.clock import Work, device_us, host_us, interleaved
from bench.device.grid import Cell
from bench.device.limits import Limits
from bench.device.rivals import KINDS, Rival, Tables
from bench.device.subject import Subject, subject
from bench.traffic import traffic
from fuserec.errors import FuserecError
from fuserec.kernels.search.gpu_config import DEFAULT_ARCH, Shape

OURS: Final = "fuserec"
_CELL_S: Final = 1.2  # of timing, all contenders together
_QUERY_SETS: Final = 4
_COMPILE_S: Final = 60.0  # of the step may go into compiling the compiled rival
Row = dict[str, Any]


@dataclass
class Bench:
    """What the cells of a run share.

    Attributes:
        step: What this step was told.
        device: "cuda", or "cpu" in a rehearsal.
        limits: Of this card.
        card: As datasheets have it, for the predictions.
        arch: Compute capability.
        compile_s: Seconds left for compiling rivals.
    """

    step: Told
    device: str
    limits: Limits
    card: roofline.Device
    arch: int
    compile_s: float = _COMPILE_S

    @classmethod
    def of(cls, step: Told) -> Bench:
        """Return that of this machine, measuring the limits where this run has not."""
        found = Limits.of(step.out)
        if found is None:
            limits.main(["--out", str(step.out), *(["--rehearse"] if step.rehearse else [])])
            found = Limits.of(step.out)
            if found is None:
                raise SystemExit("times: the limits of this card could not be measured")
        if step.rehearse:
            return cls(step, "cpu", found, _measured_card(found, limits.MADE_UP), DEFAULT_ARCH)
        major, minor = torch.cuda.get_device_capability()
        return cls(step, "cuda", found, _card(torch.cuda.get_device_name(), found), 10 * major + minor)


def _card(name: str, found: Limits) -> roofline.Device:
    """Return what the datasheet says of a card, or what was measured where there is none."""
    for device in roofline.DEVICES:
        if device.name.split()[0] in name:
            return device
    return _measured_card(found, name)


def _measured_card(found: Limits, name: str) -> roofline.Device:
    return roofline.Device(name, DEFAULT_ARCH, found.copy, found.int8, found.fp32, 0, "measured in this run")


@contextlib.contextmanager
def _freed(device: str) -> Iterator[None]:
    """Give back the memory of a table when the next one is due."""
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()


def measure(bench: Bench, cells: Sequence[Cell]) -> None:
    """Measure cells in order until the time is up; those not reached have a row that says so."""
    left = list(cells)
    while left and bench.step.left_s > 2 * _CELL_S:
        group = [left.pop(0)]
        while left and left[0].table == group[0].table:
            group.append(left.pop(0))
        with _freed(bench.device):
            left = _table(bench, group) + left
    for cell in left:
        bench.step.rows.add(**cell.cells(), contender=OURS, state="not reached")


def _table(bench: Bench, group: Sequence[Cell]) -> list[Cell]:
    """Build a table and measure its cells; return those for which no time was left."""
    rows, dim, dtype, place = group[0].table
    begin = time.monotonic()
    try:
        made = tables.normal_rows(rows, dim, getattr(torch, dtype), bench.device)
        ours = subject(made, place, bench.device)
    except (RuntimeError, FuserecError, MemoryError) as error:  # torch's out of memory is a RuntimeError
        for cell in group:
            bench.step.rows.add(**cell.cells(), contender=OURS, state=_said(error))
        return []
    print(f"{rows:,} x {dim} {dtype}, rows on the {place}: built in {time.monotonic() - begin:.1f} s", flush=True)
    theirs = Tables(made)
    for at, cell in enumerate(group):
        if bench.step.left_s < 2 * _CELL_S:
            return list(group[at:])
        try:
            found = _cell(bench, cell, ours, theirs)
        except (RuntimeError, FuserecError, ValueError) as error:
            found = [{**cell.cells(), "contender": OURS, "state": _said(error)}]
        for row in found:
            bench.step.rows.add(**row)
        print(aims.line(found), flush=True)
    return []


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def _cell(bench: Bench, cell: Cell, ours: Subject, theirs: Tables) -> list[Row]:
    """Return the rows of a cell: ours first, then each rival."""
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((_QUERY_SETS, cell.batch, cell.dim), dtype=np.float32)
    excluded = rng.integers(0, cell.rows, (cell.batch, cell.excluded)) if cell.excluded else None
    on_device = None if excluded is None else torch.from_numpy(excluded).to(bench.device)
    answer = ours.search(queries[0], cell.k, excluded)
    rivals, skipped = _rivals(bench, cell, theirs, on_device)
    there: dict[str, Work] = {name: rival.work for name, rival in rivals.items()}
    host: dict[str, Work] = {name: _turning(rival.search, queries) for name, rival in rivals.items()}
    host = {OURS: _turning(lambda q: ours.search(q, cell.k, excluded), queries)} | host
    ours_there = ours.work(torch.from_numpy(queries[0]).to(bench.device), cell.k, on_device)
    if ours_there is not None:
        there = {OURS: ours_there[0]} | there
    seconds = min(_CELL_S, bench.step.left_s) / 2 if bench.device == "cuda" else 0.02
    on_card = interleaved(there, partial(_device_us, device=bench.device), seconds=seconds)
    from_host = interleaved(host, host_us, seconds=seconds)
    found = [_row(cell, OURS, on_card.get(OURS), from_host[OURS])]
    for name, rival in rivals.items():
        agrees = _agreement(answer.ids, rival.search(queries[0])[1])
        row = _row(cell, name, on_card.get(name), from_host[name])
        found.append(row | {"exact": rival.kind.exact, "agrees_pct": agrees})
    found[0] |= {
        "exact": True,
        "device_clock": ours_there and ours_there[1],
        "certified_pct": round(100 * float(answer.certified.mean()), 2),
        "rescored_rows": round(float(answer.rescored.mean()), 1),
    }
    found[0] |= _judged(bench, cell, found)
    return found + [{**cell.cells(), "contender": name, "state": why} for name, why in skipped.items()]


def _device_us(work: Work, repeats: int, device: str) -> float:
    return device_us(work, device, repeats)


def _turning(search: Any, queries: Any) -> Work:
    """Return what searches with the next set of queries at every turn."""
    turn = iter(range(1 << 62))
    return lambda: search(queries[next(turn) % len(queries)])


def _rivals(
    bench: Bench, cell: Cell, theirs: Tables, excluded: torch.Tensor | None
) -> tuple[dict[str, Rival], dict[str, str]]:
    """Return the rivals of a cell, and why some of them are not there."""
    made: dict[str, Rival] = {}
    skipped: dict[str, str] = {}
    for kind in KINDS:
        begin = time.monotonic()
        if kind.compiled and not cell.compiled:
            continue
        if kind.compiled and bench.compile_s <= 0:
            skipped[kind.name] = "not reached: no time left to compile"
            continue
        try:
            made[kind.name] = Rival(kind, theirs.of(kind.dtype), cell.batch, cell.k, excluded, bench.device)
        except (RuntimeError, NotImplementedError) as error:  # out of memory, or no such product here
            skipped[kind.name] = _said(error)
        if kind.compiled:
            bench.compile_s -= time.monotonic() - begin
    return made, skipped


def _agreement(ours: Any, theirs: Any) -> float:
    """Return the share of our items that another search found too, in percent."""
    pairs = zip(ours[:64], theirs[:64], strict=True)
    return round(100 * float(np.mean([np.isin(mine, yours).mean() for mine, yours in pairs])), 2)


def _row(cell: Cell, name: str, on_card: Timing | None, from_host: Timing) -> Row:
    row: Row = {**cell.cells(), "contender": name, "state": "measured"}
    row |= {"device_us": on_card and on_card.median_us, "device_spread_us": on_card and on_card.spread_us}
    row |= {"host_us": from_host.median_us, "host_spread_us": from_host.spread_us, "rounds": from_host.rounds}
    return row


def _judged(bench: Bench, cell: Cell, found: Sequence[Row]) -> Row:
    """Return what our row says besides its times: limit, prediction, and the best rival."""
    shape = Shape(cell.batch, cell.rows, cell.dim, cell.k, cell.excluded)
    bytes_, predicted = traffic(shape, bench.arch), roofline.predict(bench.card, shape)
    reading = 1e6 * bytes_.floor / bench.limits.copy
    products = 1e6 * 2.0 * cell.batch * cell.rows * cell.dim / bench.limits.int8
    codes = 1e6 * cell.rows * (cell.dim + 8) / bench.limits.copy
    ours = found[0]["device_us"] or found[0]["host_us"]
    row: Row = {
        "limit_us": round(max(reading, products), 2),
        "limit": "memory" if reading >= products else "int8",
        "of_limit_pct": round(100 * max(reading, products) / ours, 1),
        "codes_of_copy_pct": round(100 * codes / ours, 1),
        "predicted_us": round(1e6 * (predicted.pass_1_s + predicted.pass_2_s), 2),
        "predicted_for": bench.card.name,
        "over_predicted": round(ours / (1e6 * (predicted.pass_1_s + predicted.pass_2_s)), 2),
    }
    for clock in ("device", "host"):
        theirs = [other for other in found[1:] if other["exact"] and other[f"{clock}_us"]]
        if theirs and found[0][f"{clock}_us"]:
            best = min(theirs, key=lambda other: other[f"{clock}_us"])
            row[f"best_rival_{clock}"] = best["contender"]
            row[f"x_{clock}"] = round(best[f"{clock}_us"] / found[0][f"{clock}_us"], 3)
    row["loses"] = min(row.get("x_device", 9.0), row.get("x_host", 9.0)) < 1
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cells, print the table and the aims."""
    step = told("times", "The search beside its rivals.", arguments)
    bench = Bench.of(step)
    if wrong := tables.check(bench.device):
        print(f"times: codes that are made on the device differ from the CPU's: {wrong}")
        return 1
    measure(bench, grid.rehearsed() if step.rehearse else grid.cells())
    rows = read_rows(step.out / "times.csv")
    print(
        "\n".join(table([row for row in rows if row["contender"] == OURS and row["state"] == "measured"], aims.COLUMNS))
    )
    missed = sum(row["state"] == "not reached" for row in rows if row["contender"] == OURS)
    print(f"{missed} cells were not reached; times.csv names them" if missed else "all cells were reached")
    print("\n".join(table(aims.evaluate(step.out))))
    return 0 if any(row["state"] == "measured" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
