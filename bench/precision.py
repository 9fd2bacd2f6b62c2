"""What each precision of each exported model costs: `python -m bench.precision --checkpoint build/quality/sasrec`.

Exports every checkpoint with `--precision auto` for all targets that are built ahead of time, and reads the quality
report of the export: one row for each part, target and precision.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench._output import add_output_options, log, report
from fuserec.export import AHEAD_OF_TIME, ExportConfig, Gate, export_checkpoint
from fuserec.manifest import bundle_folder

_MARKDOWN: Final = (
    "| model, part | graph | precision | NDCG@10 | lost | overlap | CPU ms | kB by target | build s | published for |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="folders written by `fuserec train`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the exports")
    parser.add_argument("--target", nargs="+", default=["cpu", *AHEAD_OF_TIME], help="what to build engines for")
    parser.add_argument("--markdown", type=Path, help="write them here as a table")
    add_output_options(parser)
    return parser.parse_args(arguments)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each part, target and precision of each checkpoint."""
    for folder in options.checkpoint:
        repository = options.work / f"{folder.name}-precisions"
        start = time.perf_counter()
        # What fails the gate is to be in the table; what is published is of no matter here.
        config = ExportConfig(targets=tuple(options.target), gate=Gate(accept_loss=True))
        manifest = export_checkpoint(folder, repository, config, force=True)
        log(f"{folder.name}: {time.perf_counter() - start:.1f} s for the whole ladder")
        document = json.loads((bundle_folder(repository) / "quality.json").read_text())
        for part, found in document["parts"].items():
            rungs = {(rung["kind"], rung["precision"]): rung for rung in found["rungs"]}
            for engine in found["engines"]:
                rung = rungs["cpu" if engine["target"] == "cpu" else "gpu", engine["precision"]]
                yield {
                    "model": manifest.architecture,
                    "part": part,
                    "target": engine["target"],
                    "precision": engine["precision"],
                    "bytes": engine["bytes"],
                    "build_s": engine["build_s"],
                    "ndcg@10": _rounded(rung["ndcg"]),
                    "lost": _rounded(rung["loss"]),
                    "overlap@10": _rounded(rung["overlap"]),
                    "cpu_ms": _rounded(engine["latency_ms"], 3),
                    "verdict": "refused" if rung["refusal"] else "published" if engine["published"] else "passes",
                }


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table: one line for the CPU's graph of a precision, and one for those of the GPUs."""
    graphs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in table:
        kind = "CPU" if row["target"] == "cpu" else "GPUs"
        graphs.setdefault((f"`{row['model']}`, {row['part'].replace('_', ' ')}", kind, row["precision"]), []).append(
            row
        )
    return _MARKDOWN + "".join(f"| {' | '.join([*names, *_cells(rows)])} |\n" for names, rows in graphs.items())


def _cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the engines of one graph cost, and where they are published."""
    first = rows[0]
    kilobytes = [f"{row['bytes'] / 1e3:,.0f}" for row in rows]
    named = [f"{row['target']} {size}" for row, size in zip(rows, kilobytes, strict=True)]
    built = [row["build_s"] for row in rows if row["build_s"]]
    published = [row["target"] for row in rows if row["verdict"] == "published"]
    return [
        _or_dash(first["ndcg@10"], ".4f"),
        _or_dash(first["lost"], ".1%"),
        _or_dash(first["overlap@10"], ".1%"),
        _or_dash(first["cpu_ms"], ".2f"),
        kilobytes[0] if first["target"] == "cpu" else ", ".join(named),
        f"{sum(built) / len(built):.1f}" if built else "-",
        "refused" if first["verdict"] == "refused" else ", ".join(published),
    ]


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, print a line for each engine, and write what was asked for."""
    options = parse(arguments)
    table = report(rows(options), csv_path=options.csv, as_json=options.json)
    if options.markdown:
        options.markdown.write_text(markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
