"""The quality report of an export: what every precision costs, as JSON for programs and as a page for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fuserec.export.config import ExportConfig
from fuserec.export.ladder import BuiltEngine, Ladder
from fuserec.export.page import render
from fuserec.export.unchanged import tool_versions

JSON_FILE: Final = "quality.json"
PAGE_FILE: Final = "quality.html"


def write_report(
    ladders: Sequence[Ladder],
    chosen: dict[str, dict[str, BuiltEngine]],
    config: ExportConfig,
    architecture: str,
    bundle: Path,
) -> None:
    """Write `quality.json` and `quality.html` into a bundle.

    Args:
        ladders: one a part.
        chosen: what is published, by part and target.
        config: of the export.
        architecture: of the checkpoint.
        bundle: folder.
    """
    document = {
        "architecture": architecture,
        "precision": config.precision,
        "smaller": config.reference is not None,
        "gate": asdict(config.gate),
        "calibration": {"method": config.calibration, "users": config.calibration_users},
        "tools": tool_versions(),
        "parts": {ladder.part.name: _part(ladder, chosen[ladder.part.name]) for ladder in ladders},
    }
    (bundle / JSON_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (bundle / PAGE_FILE).write_text(render(document), encoding="utf-8")


def _part(ladder: Ladder, chosen: dict[str, BuiltEngine]) -> dict[str, Any]:
    return {
        "asked": ladder.part.questions.about,
        "questions": len(ladder.part.questions.targets),
        "rungs": [
            {
                "kind": rung.kind,
                "precision": rung.precision,
                "effective": rung.effective,
                "quantized_products": rung.quantized,
                "graph_bytes": rung.graph.stat().st_size,
                "parity_error": rung.parity,
                **asdict(rung.quality),
                "refusal": rung.refusal,
            }
            for rung in ladder.rungs
        ],
        "engines": [
            {
                "target": engine.target.name,
                "hardware": engine.target.what,
                "runtime": f"{engine.target.runtime} {engine.runtime_version}",
                "precision": engine.rung.precision,
                "bytes": engine.path.stat().st_size,
                "build_s": round(engine.build_s, 3),
                "latency_ms": engine.latency_ms,
                "published": engine is chosen[engine.target.name],
            }
            for engine in ladder.engines
        ],
    }
