"""Reads the CSV files of a run, prints its tables, and draws time against batch and rows, the limit drawn in.

python -m bench.device.report FOLDER [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.device import aims
from bench.device._rows import Row, read_rows, table
from bench.device._steps import STEPS
from fuserec.files import replacing_file

_OURS = "fuserec"
_STYLES = {"limit_us": ("k--", "limit of this card"), "predicted_us": ("k:", "predicted from the datasheet")}


def summary(out: Path) -> list[str]:
    """Return the last lines of a run: what was wrong, what lost, and the aims."""
    lines = []
    correctness = read_rows(out / "correctness.csv")
    if correctness:
        asked = sum(row.get("queries") or 0 for row in correctness)
        wrong = [row for row in correctness if row["sound"] is False]
        lines.append(f"correctness: {asked:,} queries, {len(wrong)} of {len(correctness)} checks not sound")
        lines += [f"  {row['check']} {row['part']}: {row['what']}" for row in wrong]
    measured = [row for row in read_rows(out / "times.csv") if row["contender"] == _OURS and row["state"] == "measured"]
    if measured:
        lost = [row for row in measured if row.get("loses")]
        lines.append(f"times: {len(measured)} cells, {len(lost)} lose to a rival")
    lines += table(aims.evaluate(out))
    return lines


def plot(path: Path, times: Sequence[Row], title: str) -> None:
    """Draw time against batch, a panel a table, and against rows; reads nothing but rows of `times.csv`."""
    from matplotlib.figure import Figure

    kept = [row for row in times if row["state"] == "measured" and not row["excluded"] and row["dtype"] == "float32"]
    kept = [row for row in kept if row["place"] == "device"]
    if not kept:
        raise SystemExit("plot: times.csv has no measured cell without exclusions")
    sizes = sorted({(row["rows"], row["dim"]) for row in kept})
    figure = Figure(figsize=(5 * (len(sizes) + 1), 4.5), layout="constrained")
    panels = figure.subplots(1, len(sizes) + 1, squeeze=False)[0]
    for panel, (rows, dim) in zip(panels, sizes, strict=False):
        here = [row for row in kept if (row["rows"], row["dim"]) == (rows, dim)]
        k = _commonest([row["k"] for row in here if row["contender"] == _OURS])
        _draw(panel, [row for row in here if row["k"] == k], "batch", f"{rows:,} x {dim}, k = {k}")
    k = _commonest([row["k"] for row in kept if row["contender"] == _OURS])
    batch = min(row["batch"] for row in kept)
    _draw(panels[-1], [r for r in kept if (r["k"], r["batch"]) == (k, batch)], "rows", f"batch {batch}, k = {k}")
    panels[0].legend(fontsize=7)
    figure.suptitle(title)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _commonest(values: Sequence[Any]) -> Any:
    return max(dict.fromkeys(values), key=list(values).count)


def _draw(panel: Any, rows: Sequence[Row], axis: str, title: str) -> None:
    clock = "device_us" if any(row["contender"] == _OURS and row.get("device_us") for row in rows) else "host_us"
    for name in dict.fromkeys(row["contender"] for row in rows):
        shown = sorted((row[axis], row[clock]) for row in rows if row["contender"] == name and row.get(clock))
        if shown:
            panel.plot(*zip(*shown, strict=True), "o-", label=name, linewidth=2.2 if name == _OURS else 1.0)
    mine = sorted((row for row in rows if row["contender"] == _OURS), key=lambda row: row[axis])
    for column, (style, label) in _STYLES.items():
        panel.plot([row[axis] for row in mine], [row[column] for row in mine], style, label=label, linewidth=1.2)
    where = "on the device" if clock == "device_us" else "host to host"
    panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=f"microseconds a call, {where}")
    panel.set_title(title, fontsize=9)
    panel.grid(visible=True, which="both", alpha=0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every table that a folder holds."""
    parser = argparse.ArgumentParser(prog="python -m bench.device.report", description="The tables of a run.")
    parser.add_argument("folder", type=Path, help="what a run wrote: limits.csv, correctness.csv, times.csv, ...")
    parser.add_argument("--plot", type=Path, help="draw the times here (PNG)")
    options = parser.parse_args(arguments)
    for step in STEPS:
        rows = read_rows(options.folder / f"{step.name}.csv")
        if rows:
            print(f"\n{step.name}: {step.about}")
            print("\n".join(table(rows)))
    print()
    print("\n".join(summary(options.folder)))
    if options.plot:
        plot(options.plot, read_rows(options.folder / "times.csv"), _title(options.folder))
    return 0


def _title(folder: Path) -> str:
    import json

    header = json.loads((folder / "device.json").read_text())["header"]
    if header["rehearsal"]:
        return "REHEARSAL: no device, the limits are made up"
    return f"{header['card']}, {header['date'][:10]}, commit {header['commit']}: exact top-k"


if __name__ == "__main__":
    sys.exit(main())
