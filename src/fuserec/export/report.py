"""The quality report of an export: what every precision costs, as JSON for programs and as a page for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fuserec.export.config import ExportConfig
from fuserec.export.judging import popularity_ndcg
from fuserec.export.ladder import BuiltEngine, Ladder
from fuserec.export.page import render
from fuserec.export.unchanged import tool_versions

JSON_FILE: Final = "quality.json"
PAGE_FILE: Final = "quality.html"


@dataclass(frozen=True)
class ReportHead:
    """What a report is about.

    Attributes:
        architecture: of the checkpoint.
        fuserec: version of the exporter.
        checkpoint: SHA-256 of its weights.
        created: ISO 8601.
        data: counts of `items`, `users` and `interactions` that the checkpoint was trained on.
        data_sha256: fingerprint of the users and items of the checkpoint.
    """

    architecture: str
    fuserec: str
    checkpoint: str
    created: str
    data: dict[str, int]
    data_sha256: str


def write_report(
    ladders: Sequence[Ladder],
    chosen: dict[str, dict[str, BuiltEngine]],
    config: ExportConfig,
    about: ReportHead,
    bundle: Path,
) -> None:
    """Write `quality.json` and `quality.html` into a bundle.

    Args:
        ladders: one a part.
        chosen: what is published, by part and target.
        config: of the export.
        about: what the report is about.
        bundle: folder.
    """
    document = {
        **asdict(about),
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
        "popularity_ndcg": popularity_ndcg(ladder.part.questions),
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
