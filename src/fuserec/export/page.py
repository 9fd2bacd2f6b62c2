"""The quality report as one HTML file: tables, and plots drawn into it, so that it can be sent on as it is."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Sequence
from string import Template
from typing import Any, Final

from fuserec.export.gate import EQUAL_LATENCY

COLORS: Final = {
    "fp32": "#4a5568",
    "fp16": "#2b6cb0",
    "bf16": "#0e9aa7",
    "int8": "#c8552b",
    "fp8": "#8e44ad",
    "int8-weight-only": "#b7791f",
}
MARKERS: Final = "osD^vP*X<>"

PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
p { margin: .3rem 0 } .quiet { color: #5a6578 }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem .25rem 0; text-align: right }
tr { border-bottom: 1px solid #e2e8f0 }
th, td { white-space: nowrap } th { font-weight: 600; color: #5a6578 } th.text, td.text { text-align: left }
tr.published td { font-weight: 600; background: #f0f7f2 } tr.refused td { color: #a0aec0 }
td.why { white-space: normal }
svg { max-width: 100%; height: auto }
.wide { overflow-x: auto } .plots { display: flex; flex-wrap: wrap; gap: 1rem }
.plots figure { flex: 1 1 20rem; margin: 0 }
</style>
</head>
<body>
<h1>$title</h1>
<p class="quiet">$made</p>
<p class="quiet">$about</p>
$summary
$parts
<p class="quiet">$tools</p>
</body>
</html>
""")


def render(document: dict[str, Any]) -> str:
    """Return the page of a report's document, as `report.write_report` makes it."""
    gate, calibration = document["gate"], document["calibration"]
    accepted = ", or all the same, as the loss was accepted" if gate["accept_loss"] else ""
    original = (
        " NDCG@10 is compared with that of the checkpoint before it was made smaller." if document["smaller"] else ""
    )
    about = (
        f"Precision asked for: {document['precision']}. A precision passes if it loses at most "
        f"{gate['max_ndcg_loss']:.1%} of NDCG@10 and keeps at least {gate['min_overlap']:.0%} of the ten best items "
        f"that float32 finds{accepted}.{original} Calibrated by {calibration['method']} on up to "
        f"{calibration['users']:,} users; judged on others, through the exported graphs."
    )
    return PAGE.substitute(
        title=html.escape(f"{document['architecture']}: what each precision costs"),
        made=html.escape(_made(document)),
        about=html.escape(about),
        summary=_summary(document["parts"]),
        parts="\n".join(_part(name, part, gate) for name, part in document["parts"].items()),
        tools=html.escape("Built with " + ", ".join(f"{tool} {of}" for tool, of in document["tools"].items())),
    )


def _made(document: dict[str, Any]) -> str:
    """Return what was exported, of which data, and when."""
    data = ", ".join(f"{count:,} {what}" for what, count in document["data"].items())
    return (
        f"Checkpoint {document['checkpoint'][:12]}, trained on {data} (fingerprint {document['data_sha256'][:12]}); "
        f"exported {document['created']} by fuserec {document['fuserec']}."
    )


def _summary(parts: dict[str, Any]) -> str:
    """What is published: a row a target."""
    targets: dict[str, list[str]] = {}
    for part in parts.values():
        for engine in part["engines"]:
            if engine["published"]:
                targets.setdefault(f"{engine['target']}: {engine['hardware']}", []).append(engine["precision"])
    header = ["target", *(name.replace("_", " ") for name in parts)]
    return _table(header, ([target, *precisions] for target, precisions in targets.items()), text=len(header))


def _part(name: str, part: dict[str, Any], gate: dict[str, Any]) -> str:
    rungs = _table(
        ["graph for", "precision", "NDCG@10", "lost", "HR@10", "overlap", "parity error", "bytes", "gate"],
        (
            [
                rung["kind"].upper() if rung["kind"] == "cpu" else "GPUs",
                rung["precision"]
                if rung["effective"] == rung["precision"]
                else f"{rung['precision']} ({rung['effective']})",
                _estimate(rung["ndcg"], rung["ndcg_error"], ".4f"),
                _estimate(rung["loss"], rung["loss_error"], ".2%"),
                _number(rung["hr"], ".4f"),
                f"{rung['overlap']:.1%}",
                f"{rung['parity_error']:.1e}",
                f"{rung['graph_bytes']:,}",
                rung["refusal"] or "passes",
            ]
            for rung in part["rungs"]
        ),
        text=2,
        classes=["refused" if rung["refusal"] else "" for rung in part["rungs"]],
        why=True,
    )
    engines = _table(
        ["target", "precision", "runtime", "bytes", "build s", "CPU call, ms", ""],
        (
            [
                engine["target"],
                engine["precision"],
                engine["runtime"],
                f"{engine['bytes']:,}",
                _build_time(engine),
                _number(engine["latency_ms"], ".3f"),
                "published" if engine["published"] else "",
            ]
            for engine in part["engines"]
        ),
        text=3,
        classes=["published" if engine["published"] else "" for engine in part["engines"]],
    )
    popular = part["popularity_ndcg"]
    baseline = "" if popular is None else f" The most popular items alone reach an NDCG@10 of {popular:.4f}."
    return (
        f"<h2>{html.escape(name.replace('_', ' '))}</h2>\n"
        f'<p class="quiet">Asked {html.escape(part["asked"])}.{baseline} ± is half the 95 % interval over questions; '
        f"that of the loss, and the bars, are of the paired difference to float32.</p>\n{_plots(part, gate)}\n{rungs}\n"
        '<p class="quiet">Engines. A call is one row, one thread, on the machine of the export. Of the engines that '
        f"pass the gate the fastest is published; within {EQUAL_LATENCY - 1:.0%} of its time the smallest. Engines for "
        "hardware that the machine does not have are not timed, but taken in the order of that hardware's peak "
        f"rates.</p>\n{engines}"
    )


def _plots(part: dict[str, Any], gate: dict[str, Any]) -> str:
    """Quality against bytes for every target, and against the latency of the CPU, as inline SVG."""
    from matplotlib import rc_context

    metric = "overlap" if any(rung["ndcg"] is None for rung in part["rungs"]) else "ndcg"
    rungs = {(rung["kind"], rung["precision"]): rung for rung in part["rungs"]}
    points = [
        (engine, rungs["cpu" if engine["target"] == "cpu" else "gpu", engine["precision"]])
        for engine in part["engines"]
    ]
    timed = [(engine, rung) for engine, rung in points if engine["latency_ms"] is not None]
    targets = list(dict.fromkeys(engine["target"] for engine in part["engines"]))
    lowest = gate["min_overlap"] if metric == "overlap" else _lowest_ndcg(part["rungs"], gate)
    gate_line = f"the gate: {lowest:.4f}", lowest
    with rc_context({"svg.hashsalt": "fuserec", "font.family": "sans-serif"}):  # the same bytes for the same numbers
        drawn = [_plot("engine, MB", points, lambda engine: engine["bytes"] / 1e6, metric, targets, gate_line)]
        if timed:
            times = "call of one row on this CPU, ms"
            drawn.append(_plot(times, timed, lambda engine: engine["latency_ms"], metric, targets, gate_line))
    return f'<div class="plots">{"".join(f"<figure>{svg}</figure>" for svg in drawn)}</div>'


def _plot(
    what: str,
    points: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    measure: Callable[[dict[str, Any]], float],
    metric: str,
    targets: Sequence[str],
    gate_line: tuple[str, float],
) -> str:
    """Draw a quality against a measure of engines.

    Colour is precision, shape is target, large is published, hollow is refused. A bar is the 95 % interval of the
    paired difference to float32: that of NDCG@10 itself is wider than all that a precision changes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for engine, rung in points:
        color = COLORS[engine["precision"]]
        if metric == "ndcg" and rung["loss_error"]:
            error = rung["loss_error"] * _reference_ndcg(rung)
            axes.errorbar(measure(engine), rung[metric], error, color=color, elinewidth=0.8, alpha=0.6)
        axes.plot(
            measure(engine),
            rung[metric],
            marker=MARKERS[targets.index(engine["target"]) % len(MARKERS)],
            color=color,
            markerfacecolor=color if rung["refusal"] is None else "white",
            markersize=11 if engine["published"] else 7,
            clip_on=False,  # a point on the border is whole
            zorder=3,
        )
    label, lowest = gate_line
    rule = axes.axhline(lowest, color="#c53030", linewidth=1, linestyle=":", label=label)
    axes.set(xlabel=what, ylabel={"overlap": "overlap of the ten best with float32", "ndcg": "NDCG@10"}[metric])
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    axes.set_xlim(0, 1.08 * max(measure(engine) for engine, _ in points))
    shown = dict.fromkeys(engine["precision"] for engine, _ in points)
    handles = [axes.plot([], [], "o", color=COLORS[name], label=name)[0] for name in COLORS if name in shown]
    handles += [
        axes.plot([], [], MARKERS[place % len(MARKERS)], color="#718096", label=name)[0]
        for place, name in enumerate(targets)
        if any(name == engine["target"] for engine, _ in points)
    ]
    figure.legend(handles=[*handles, rule], loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _lowest_ndcg(rungs: Sequence[dict[str, Any]], gate: dict[str, Any]) -> float:
    """What NDCG@10 may fall to; every rung tells what float32 has."""
    return _reference_ndcg(rungs[0]) * (1.0 - float(gate["max_ndcg_loss"]))


def _reference_ndcg(rung: dict[str, Any]) -> float:
    """Return the NDCG@10 that a rung is compared with."""
    return float(rung["ndcg"] / (1 - rung["loss"])) if rung["loss"] < 1 else 0.0


def _build_time(engine: dict[str, Any]) -> str:
    if engine["target"] == "cpu":
        return "–"  # the graph is the engine
    return f"{engine['build_s']:.2f}" if engine["build_s"] else "cached"


def _estimate(value: float | None, error: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}} ± {error or 0.0:{form}}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, text: int, classes: Sequence[str] = (), why: bool = False
) -> str:
    """Return a table whose first `text` columns are words; `why` says that the last one is a sentence."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [
            "text" if place < text else "text why" if why and place == len(row) - 1 else "" for place in range(len(row))
        ]
        return "".join(
            f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>' for kind, cell in zip(kinds, row, strict=True)
        )

    lines = [f'<div class="wide"><table><thead><tr>{cells("th", header)}</tr></thead><tbody>']
    for place, row in enumerate(rows):
        lines.append(f'<tr class="{classes[place] if classes else ""}">{cells("td", row)}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])
