"""What may be published: precisions whose ranking is close enough to that of float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fuserec.errors import ExportError
from fuserec.export.config import ExportConfig, Gate
from fuserec.export.judging import K, Quality
from fuserec.export.targets import AUTO, Target

if TYPE_CHECKING:
    from fuserec.export.ladder import BuiltEngine, Ladder

# Latencies this close are equal: the smaller engine is taken.
EQUAL_LATENCY: Final = 1.05


def refusal(quality: Quality, gate: Gate) -> str | None:
    """Say why a gate does not let a quality pass; None if it does."""
    if quality.loss is not None and quality.loss > gate.max_ndcg_loss:
        return f"NDCG@{K} falls by {quality.loss:.2%}, at most {gate.max_ndcg_loss:.2%} may be lost"
    if quality.overlap < gate.min_overlap:
        return f"{quality.overlap:.1%} of the ten best stay, at least {gate.min_overlap:.1%} must"
    return None


def choose_engines(ladder: Ladder, config: ExportConfig) -> dict[str, BuiltEngine]:
    """Return which engine of a part is published for each target.

    Raises:
        ExportError: The precision that was asked for does not pass the gate, or none does; the message holds the table.
    """
    chosen = {}
    for target in config.all_targets:
        engines = [engine for engine in ladder.engines if engine.target == target]
        engine = _fastest([engine for engine in engines if engine.rung.refusal is None], target)
        if engine is None and config.gate.accept_loss:
            engine = max(engines, key=lambda engine: engine.rung.quality.overlap)
        if engine is None:
            what = "no precision" if config.precision == AUTO else config.precision
            raise ExportError(
                f"{what} of the {ladder.part.title} passes the quality gate for {target.name}, asked "
                f"{ladder.part.questions.about}:\n{table(ladder, target)}\n"
                "take a higher precision, or --accept-quality-loss if that is good enough"
            )
        chosen[target.name] = engine
    return chosen


def table(ladder: Ladder, target: Target) -> str:
    """Return what each precision costs on a target, for a message."""
    lines = [f"    {'precision':<18}{'NDCG@10':>9}{'HR@10':>9}{'overlap':>9}"]
    for rung in ladder.rungs:
        if rung.kind == target.kind and rung.precision in target.precisions:
            quality = rung.quality
            numbers = [f"{'-':>9}" if value is None else f"{value:>9.4f}" for value in (quality.ndcg, quality.hr)]
            verdict = rung.refusal or "passes"
            lines.append(f"    {rung.precision:<18}{''.join(numbers)}{quality.overlap:>9.1%}   {verdict}")
    return "\n".join(lines)


def _fastest(passing: Sequence[BuiltEngine], target: Target) -> BuiltEngine | None:
    """Return the fastest of some engines for one target.

    What was timed goes by time; of those within 5 % of the fastest the smallest is taken. What was not goes by the
    order of the target's precisions.
    """
    if not passing:
        return None
    times = [engine.latency_ms for engine in passing if engine.latency_ms is not None]
    if len(times) < len(passing):
        return min(passing, key=lambda engine: target.precisions.index(engine.rung.precision))
    close = [engine for engine in passing if (engine.latency_ms or 0.0) <= EQUAL_LATENCY * min(times)]
    return min(close, key=lambda engine: engine.path.stat().st_size)
