"""Rows for people: the table on the terminal and the plot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench import _limits
from bench.serving.measure import CLOSED, OPEN, Row
from fuserec.files import replacing_file

_COLORS: Final = ("tab:blue", "tab:cyan", "tab:gray", "tab:red")


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the heading and a line a row; the spread over the rounds is in brackets."""
    for number, row in enumerate(rows):
        at = f"{row['concurrency']} callers" if row["load"] == CLOSED else f"{row['share_pct']:g} % open"
        cells = {
            "items": f"{row['items']:,}".rjust(9),
            "contender": row["contender"].ljust(12),
            "load": at.rjust(10),
            "answers/s": f"{row['qps']:.0f} ({row['qps_spread']:.0f})".rjust(12),
            "p50 ms": f"{row['p50_ms']:.2f} ({row['p50_ms_spread']:.2f})".rjust(15),
            "p90 ms": f"{row['p90_ms']:.1f}".rjust(7),
            "p99 ms": f"{row['p99_ms']:.1f} ({row['p99_ms_spread']:.1f})".rjust(15),
            "max ms": f"{row['max_ms']:.0f}".rjust(6),
            "errors": str(row["errors"]).rjust(6),
            "batch": ("-" if row["batch"] is None else f"{row['batch']:.1f}").rjust(5),
            "server cores": f"{row['server_cores']:.2f}".rjust(12),
            "generator": f"{row['generator_cores']:.2f}".rjust(9),
            "lag p99 ms": f"{row['lag_p99_ms']:.1f}".rjust(10),
        }
        if number == 0:
            yield "  ".join(name.rjust(len(cell)) for name, cell in cells.items())
        yield "  ".join(cells.values()) + (f"  ({row['what']})" if row["what"] else "")


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draw p50 and p99 against throughput, a line a contender and a row of panels a catalogue."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    catalogues = list(dict.fromkeys((row["catalogue"], row["items"]) for row in rows))
    names = list(dict.fromkeys(row["contender"].split(" 2x")[0].split(" 1x")[0] for row in rows))
    figure = Figure(figsize=(12, 0.8 + 4.2 * len(catalogues)), layout="constrained")
    panels = figure.subplots(len(catalogues), 2, squeeze=False)
    for (catalogue, items), pair in zip(catalogues, panels, strict=True):
        here = [row for row in rows if row["catalogue"] == catalogue]
        for panel, latency in zip(pair, ("p50", "p99"), strict=True):
            for name, color in zip(names, _COLORS, strict=False):
                _draw(
                    panel, [row for row in here if row["contender"].startswith(name) and _is(row, name)], latency, color
                )
            panel.set(xlabel="answers a second", ylabel=f"{latency}, ms", xscale="log", yscale="log")
            panel.set_title(f"{items:,} items", fontsize=10)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            panel.grid(visible=True, which="both", alpha=0.2)
    panels[0][0].legend(fontsize=8)
    figure.suptitle(f"recommend, k = 10; solid: callers who wait, dashed: Poisson arrivals; {_limits.hardware()}")
    with replacing_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _is(row: Row, name: str) -> bool:
    """Whether a row is of a contender and not of one whose name only begins alike."""
    return bool(row["contender"] == name or row["contender"].removeprefix(name).startswith((" 1x", " 2x")))


def _draw(panel: Any, rows: Sequence[Row], latency: str, color: str) -> None:
    for load, style in ((CLOSED, "o-"), (OPEN, "x--")):
        shown = [row for row in rows if row["load"] == load]
        if not shown:
            continue
        x, y = [row["qps"] for row in shown], [row[f"{latency}_ms"] for row in shown]
        label = shown[0]["contender"] if load == CLOSED else None
        panel.plot(x, y, style, color=color, label=label, linewidth=1.4, markersize=4)
        if load == CLOSED:
            for row, at_x, at_y in zip(shown, x, y, strict=True):
                panel.annotate(row["concurrency"], (at_x, at_y), fontsize=6, xytext=(3, 3), textcoords="offset points")
