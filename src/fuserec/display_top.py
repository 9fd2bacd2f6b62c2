"""The screen of `fuserec top`."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fuserec.terminal import out, verbatim
from fuserec.top import View


def waiting(url: str) -> RenderableType:
    """Return what is shown before there is anything to show."""
    return Text(f"looking at {url}", style="dim")


def screen(view: View) -> RenderableType:
    """Return what a server did, as a table and a line for each experiment."""
    # No wider than 80 columns, which leaves room for neither borders nor long words.
    title = f"the last {view.seconds:.1f} s; p50 and p99 of executions, and time in the queue, in ms"
    table = Table(title=title, title_justify="left", box=None, collapse_padding=True)
    table.add_column("model")
    for column in ("v", "qps", "p50", "p99", "queue", "wait", "batch", "shed", "bad", "late", "fail", "fallback"):
        table.add_column(column, justify="right")
    for each in view.models:
        numbers = (
            f"{each.qps:,.1f}",
            _shown(each.p50_ms, ".2f"),
            _shown(each.p99_ms, ".2f"),
            _shown(each.queue_ms, ".2f"),
            f"{each.pending:.0f}",
            _shown(each.batch_rows, ".1f"),
            _alarming(each.rejected_per_s),
            _alarming(each.refused_per_s),
            _alarming(each.expired_per_s),
            _alarming(each.failed_per_s),
            _shown(each.fallback, ".1%"),
        )
        table.add_row(verbatim(each.model), verbatim(each.version), *numbers, style="" if each.qps else "dim")
    lines: list[RenderableType] = [table]
    for device, models in view.devices.items():
        lines.append(Text(f"{device:<7} {', '.join(models)}"))
    for shadow in view.shadows:
        who = f"shadow  version {shadow.candidate} beside {shadow.version}"
        what = f"{shadow.overlap:.1%} of the items in common, {shadow.ms_per_row:.2f} ms a row"
        lines.append(Text(f"{who}: {what}, {shadow.rows_per_s:,.1f} rows/s"))
    if view.ab:
        shares = ", ".join(f"version {version} {share:.1%}" for version, share in view.ab.items())
        lines.append(Text(f"A/B     rows answered by {shares}"))
    return Group(*lines)


def show(view: View) -> None:
    """Print what a server did."""
    out.print(screen(view))


def _shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _alarming(per_s: float) -> Text:
    return Text(f"{per_s:,.1f}", "red") if per_s else Text("0")
