"""Where the time of the cells that matter goes: kernel by kernel, and what the hardware counters say of each.

The profiler of torch times every kernel. ncu, where it is installed and may read the counters, adds bytes, bandwidth
and occupancy; where it may not, that is said and the times stand alone.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from bench.device import grid, tables
from bench.device._facts import ROOT
from bench.device._rows import table
from bench.device._step_options import Told, told
from bench.device.grid import Cell
from bench.device.subject import Subject, subject

_CALLS: Final = 20
# What ncu is asked for, and what the rows call it.
METRICS: Final = {
    "gpu__time_duration.sum": "ncu_ns",
    "dram__bytes.sum": "dram_bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_pct",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps_pct",
    "launch__registers_per_thread": "registers",
}
COLUMNS: Final = ("cell", "kernel", "calls", "us_a_call", "share_pct", *METRICS.values(), "state")


def profiled(*, rehearse: bool) -> list[Cell]:
    """Return the cells that are looked into."""
    if rehearse:
        return grid.rehearsed()[:1]
    return [
        grid.TEN_MILLION,
        grid.MILLION,
        Cell(1_000_000, 128, batch=64),
        Cell(1_000_000, 128, batch=1024),
        Cell(1_000_000, 128, k=1000, batch=64),
        Cell(10_000, 64, batch=8),
    ]


def _name(cell: Cell) -> str:
    return f"{cell.rows}x{cell.dim} k {cell.k} batch {cell.batch}"


def _prepared(cell: Cell, device: str) -> tuple[Subject, Any]:
    rows = tables.normal_rows(cell.rows, cell.dim, torch.float32, device)
    queries = np.random.default_rng(1).standard_normal((cell.batch, cell.dim), dtype=np.float32)
    ours = subject(rows, cell.place, device)
    ours.search(queries, cell.k, None)  # compiles
    return ours, queries


def kernel_times(cell: Cell, device: str) -> list[dict[str, Any]]:
    """Return a row a kernel (an operator, in a rehearsal), the longest first, and one for the time between them."""
    ours, queries = _prepared(cell, device)
    calls = _CALLS if device == "cuda" else 2
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, *([activity.CUDA] if device == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        begin = time.perf_counter()
        for _ in range(calls):
            ours.search(queries, cell.k, None)
        wall_us = 1e6 * (time.perf_counter() - begin) / calls
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    found = [(event.key, event.count, getattr(event, attribute)) for event in profile.key_averages()]
    found = sorted((one for one in found if one[2] > 0), key=lambda one: -one[2])[:12]
    rows = [
        {"cell": _name(cell), "kernel": key[:60], "calls": round(count / calls, 2), "us_a_call": round(us / calls, 2)}
        for key, count, us in found
    ]
    busy = sum(row["us_a_call"] for row in rows)
    rows.append({"cell": _name(cell), "kernel": "(outside of these)", "us_a_call": round(max(wall_us - busy, 0.0), 2)})
    return [row | {"share_pct": round(100 * row["us_a_call"] / max(wall_us, busy), 1)} for row in rows]


def counters(cell: Cell, seconds: float) -> list[dict[str, Any]]:
    """Return what ncu reads of each kernel of one search; a row that says why where it reads nothing."""
    found = shutil.which("ncu")
    if found is None:
        return [{"cell": _name(cell), "kernel": "-", "state": "ncu is not installed here"}]
    # Clocks are left as they are. The kernels of the first search are those that compile, so the second is watched.
    command = [found, "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS)]
    command += ["--profile-from-start", "off", sys.executable, "-m", "bench.device.profiled", *map(str, _sizes(cell))]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        return [{"cell": _name(cell), "kernel": "-", "state": "ncu was stopped by the time limit"}]
    rows = read_counters(done.stdout)
    if not rows:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"status {done.returncode}"]
        return [{"cell": _name(cell), "kernel": "-", "state": f"ncu reads nothing here: {said[-1][:120]}"}]
    return [{"cell": _name(cell), **row} for row in rows]


def _sizes(cell: Cell) -> tuple[int, ...]:
    return cell.rows, cell.dim, cell.k, cell.batch


def read_counters(text: str) -> list[dict[str, Any]]:
    """Return the rows of ncu's CSV, which begins after what the program and ncu itself print."""
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    rows = []
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))):
        if not row["ID"]:  # the line of units
            continue
        values = {name: _number(row.get(metric)) for metric, name in METRICS.items()}
        rows.append({"kernel": row["Kernel Name"][:60], "calls": 1, **values, "state": "ncu"})
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile the cells until the time is up, and print the table."""
    step: Told = told("profiles", "Where the time goes.", arguments)
    device = "cpu" if step.rehearse else "cuda"
    cells = profiled(rehearse=step.rehearse)
    for cell in cells:
        if step.left_s < 5:
            step.rows.add(cell=_name(cell), kernel="-", state="not reached")
            continue
        for row in kernel_times(cell, device):
            step.rows.add(**row)
        if device == "cuda":
            torch.cuda.empty_cache()
    for cell in cells[:3]:
        if step.rehearse or step.left_s < 8:
            step.rows.add(cell=_name(cell), kernel="-", state="counters: not reached")
            continue
        for row in counters(cell, step.left_s - 2):
            step.rows.add(**row)
    print("\n".join(table(step.rows.rows, COLUMNS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
