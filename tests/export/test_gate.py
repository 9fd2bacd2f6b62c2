"""Only what ranks as float32 does is published, and of that the fastest."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fuserec.errors import ExportError
from fuserec.export.config import ExportConfig, Gate
from fuserec.export.gate import choose_engines, refusal
from fuserec.export.judging import Quality
from fuserec.export.ladder import BuiltEngine, Ladder, Rung
from fuserec.export.targets import TARGETS


def quality(loss: float | None = 0.0, overlap: float = 1.0) -> Quality:
    return Quality(None if loss is None else 0.1, None if loss is None else 0.2, overlap, loss, overlap)


@pytest.mark.parametrize(
    ("came", "said"),
    [
        (quality(), None),
        (quality(loss=0.01, overlap=0.95), None),
        (quality(loss=-0.5), None),
        (quality(loss=0.02), "NDCG@10 falls by 2.00%, at most 1.00% may be lost"),
        (quality(overlap=0.9), "90.0% of the ten best stay, at least 95.0% must"),
        (quality(loss=None, overlap=0.9), "90.0% of the ten best stay, at least 95.0% must"),
        (quality(loss=None), None),
    ],
)
def test_refusal_says_what_is_lost(came: Quality, said: str | None) -> None:
    assert refusal(came, Gate()) == said


def ladder(folder: Path, *engines: tuple[str, str, float | None, int, str | None]) -> Ladder:
    """Engines as (target, precision, latency, bytes, refusal)."""
    rungs, built = [], []
    for target, precision, latency, size, why in engines:
        path = folder / f"{target}.{precision}"
        path.write_bytes(b"x" * size)
        kept = 1.0 if why is None else 0.5 + 0.01 * len(built)
        rungs.append(Rung(precision, TARGETS[target].kind, path, precision, 1, 0.0, quality(overlap=kept), why))
        built.append(BuiltEngine(TARGETS[target], rungs[-1], path, "1", 0.1, latency))
    part = cast(Any, SimpleNamespace(title="user tower", questions=SimpleNamespace(about="what 7 users consumed next")))
    return Ladder(part, rungs, built)


def test_of_timed_engines_the_fastest_is_taken(tmp_path: Path) -> None:
    made = ladder(tmp_path, ("cpu", "fp32", 1.0, 40, None), ("cpu", "int8", 0.5, 10, None))
    assert choose_engines(made, ExportConfig())["cpu"].rung.precision == "int8"
    made = ladder(tmp_path, ("cpu", "fp32", 0.5, 40, None), ("cpu", "int8", 1.0, 10, None))
    assert choose_engines(made, ExportConfig())["cpu"].rung.precision == "fp32"


def test_of_equally_fast_ones_the_smallest_is_taken(tmp_path: Path) -> None:
    made = ladder(tmp_path, ("cpu", "fp32", 1.00, 40, None), ("cpu", "int8-weight-only", 1.03, 10, None))
    assert choose_engines(made, ExportConfig())["cpu"].rung.precision == "int8-weight-only"


def test_what_cannot_be_timed_goes_by_the_targets_order(tmp_path: Path) -> None:
    cpu = ("cpu", "fp32", 1.0, 40, None)
    made = ladder(tmp_path, cpu, ("sm89", "fp16", None, 10, None), ("sm89", "fp8", None, 40, None))
    assert choose_engines(made, ExportConfig(targets=("sm89",)))["sm89"].rung.precision == "fp8"
    made = ladder(tmp_path, cpu, ("sm89", "fp16", None, 10, None), ("sm89", "fp8", None, 40, "too coarse"))
    assert choose_engines(made, ExportConfig(targets=("sm89",)))["sm89"].rung.precision == "fp16"


def test_a_precision_that_fails_stops_the_export_with_the_table(tmp_path: Path) -> None:
    made = ladder(tmp_path, ("cpu", "int8", 1.0, 10, "90.0% of the ten best stay"))
    with pytest.raises(ExportError) as caught:
        choose_engines(made, ExportConfig("int8"))
    message = str(caught.value)
    assert "int8 of the user tower passes the quality gate for cpu" in message
    assert "what 7 users consumed next" in message and "--accept-quality-loss" in message
    [row] = [line for line in message.splitlines() if line.startswith("    int8 ")]
    assert row.split()[:4] == ["int8", "0.1000", "0.2000", "50.0%"] and row.endswith("90.0% of the ten best stay")


def test_an_accepted_loss_is_published(tmp_path: Path) -> None:
    config = ExportConfig("int8", gate=Gate(accept_loss=True))
    made = ladder(tmp_path, ("cpu", "int8", 1.0, 10, "too coarse"))
    assert choose_engines(made, config)["cpu"].rung.precision == "int8"
