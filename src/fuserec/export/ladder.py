"""One part of a model in every precision: its graphs, what they cost in ranking, and the engines of every target."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fuserec.errors import ExportError
from fuserec.export.calibration import largest_values
from fuserec.export.config import ExportConfig, Gate
from fuserec.export.gate import refusal
from fuserec.export.judging import Ids, Quality, Reference, judge
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parity import measure_parity
from fuserec.export.parts import Part
from fuserec.export.precision import SCHEMES, convert
from fuserec.export.targets import AUTO, CPU, Kind, Target
from fuserec.export.tensorrt import build_engine, library_version
from fuserec.export.timing import latencies_ms
from fuserec.serve.engines import OnnxRuntimeEngine

OnStep = Callable[[str], None]
OnBuild = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Rung:
    """One precision of a part, for the CPU or for GPUs.

    Attributes:
        precision: what was asked for.
        kind: `cpu` or `gpu`.
        graph: what is run on a CPU, or becomes an engine.
        effective: the precision that it has: without anything to quantize it is that of the rest.
        quantized: how many products were quantized.
        parity: largest error against the module, as a share of the largest absolute value.
        quality: of the lists that follow from it.
        refusal: why the gate does not let it pass; None if it does.
    """

    precision: str
    kind: Kind
    graph: Path
    effective: str
    quantized: int
    parity: float
    quality: Quality
    refusal: str | None


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of one rung for one target.

    Attributes:
        target: what it is for.
        rung: what it was built from.
        path: where it lies until it is published.
        runtime_version: of the library that built it.
        build_s: seconds that the build took; 0 for one that was built before.
        latency_ms: median time of one call with one row on this machine; None for what this machine does not have.
    """

    target: Target
    rung: Rung
    path: Path
    runtime_version: str
    build_s: float
    latency_ms: float | None


@dataclass(frozen=True)
class Ladder:
    """All rungs and engines of a part."""

    part: Part
    rungs: list[Rung]
    engines: list[BuiltEngine]


def trace(part: Part, scratch: Path) -> Path:
    """Return the float32 graph of a part, written into `scratch`."""
    path = scratch / f"{part.name}.fp32.onnx"
    export_graph(part, path)
    return path


def ask(graph: Path, part: Part, kind: Kind) -> Ids:
    """Put a part's questions to a graph on the CPU: (n, 10) int64."""
    engine = OnnxRuntimeEngine(graph, threads=os.cpu_count() or 1, fuse=kind == "cpu")
    return part.questions.ask(lambda feed: engine.run(feed)[part.output])


def climb(
    part: Part,
    traced: Path,
    reference: Reference,
    scratch: Path,
    config: ExportConfig,
    on_step: OnStep,
    on_build: OnBuild,
) -> Ladder:
    """Build and judge a part in the precisions that are asked for.

    Args:
        part: what to build.
        traced: its float32 graph.
        reference: what the lists are compared with.
        scratch: folder for graphs and engines.
        config: precision, targets, gate.
        on_step: told of each step as it begins.
        on_build: told how many engines of how many are built, and which is next.

    Raises:
        ExportError: The float32 graph is not the module, or a target cannot run a graph.
    """
    plan = [(target, precision) for target in config.all_targets for precision in config.precisions_for(target)]
    wanted = dict.fromkeys((target.kind, precision) for target, precision in plan)
    largest = {}
    if {"int8", "fp8"} & {precision for _, precision in wanted}:
        on_step(f"{part.title}: calibrating on real inputs ({config.calibration})")
        largest = largest_values(traced, part.calibration, config.calibration)
    made: dict[tuple[Kind, str], Rung] = {}
    for kind, precision in wanted:
        on_step(f"{part.title}: {precision} for {kind.upper()}s, compared with the module and judged")
        rung = _rung(part, traced, reference, largest, kind, precision, scratch, config.gate)
        if config.precision != AUTO or rung.effective == precision:
            made[kind, precision] = rung
    on_step(f"{part.title}: building engines")
    engines = _build(
        part,
        [(target, made[target.kind, precision]) for target, precision in plan if (target.kind, precision) in made],
        scratch,
        on_build,
    )
    return Ladder(part, list(made.values()), engines)


def _rung(
    part: Part,
    traced: Path,
    reference: Reference,
    largest: Mapping[str, float],
    kind: Kind,
    precision: str,
    scratch: Path,
    gate: Gate,
) -> Rung:
    """Make the graph of one precision, compare it with the module, and judge it."""
    graph = scratch / f"{part.name}.{precision}.{kind}.onnx"
    quantized = convert(traced, precision, kind, largest, graph)
    judged = graph
    if precision == "bf16":  # all others are computed on a CPU as they are
        judged = scratch / f"{part.name}.{precision}.emulation.onnx"
        convert(traced, precision, "emulation", largest, judged)
    effective = precision
    if precision in SCHEMES and quantized == 0:
        effective = "fp32" if kind == "cpu" else "fp16"
    parity = measure_parity(judged, part, effective, kind)
    if effective == "fp32" and parity.fault is not None:
        raise ExportError(f"the graph of the {part.title} is not the trained module: {parity.fault}")
    quality = judge(ask(judged, part, kind), reference, part.questions.targets)
    return Rung(
        precision, kind, graph, effective, quantized, parity.error, quality, parity.fault or refusal(quality, gate)
    )


def _build(part: Part, plan: Sequence[tuple[Target, Rung]], scratch: Path, on_build: OnBuild) -> list[BuiltEngine]:
    """Build the engine of each rung for its targets, and time those of the CPU."""
    graphs = [rung for target, rung in plan if target.name == CPU]
    latencies = dict(
        zip((id(rung) for rung in graphs), latencies_ms([rung.graph for rung in graphs], part), strict=True)
    )
    engines = []
    # One after the other: TensorRT-RTX builds for one target at a time in a process, and fails when it is not so.
    for done, (target, rung) in enumerate(plan):
        on_build(done, len(plan), f"{rung.precision} for {target.name}")
        if target.name == CPU:
            version = importlib.metadata.version("onnxruntime")
            engines.append(BuiltEngine(target, rung, rung.graph, version, 0.0, latencies[id(rung)]))
        else:
            path = scratch / f"{part.name}.{rung.precision}.{target.name}.engine"
            build_s = build_engine(rung.graph, target, part, path)
            engines.append(BuiltEngine(target, rung, path, library_version(target), build_s, None))
    return engines
