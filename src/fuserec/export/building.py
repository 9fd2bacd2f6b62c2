"""One part of a model as graph and engines in the bundle."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path

from fuserec.export.config import TARGETS, ExportConfig
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import Part
from fuserec.export.precision import convert, count_quantized
from fuserec.export.tensorrt import build_engine, library_version
from fuserec.manifest import EngineRecord


def graph_file(part: str) -> str:
    """Return where the graph of a part lies, relative to the bundle."""
    return f"engines/{part}.cpu.onnx"


def build_part(
    part: Part, bundle: Path, scratch: Path, config: ExportConfig, on_step: Callable[[str], None]
) -> dict[str, EngineRecord]:
    """Write the graph of a part in the precision asked for, and an engine for each target.

    Returns:
        Target to engine; `cpu` is the graph itself. A part without anything to quantize is in float32 and says so.

    Raises:
        ExportError: A target cannot run it.
    """
    name = part.name.replace("_", " ")
    on_step(f"tracing the {name} to ONNX, then to {config.precision}")
    start = time.perf_counter()
    traced = scratch / f"{part.name}.onnx"
    export_graph(part, traced)
    graph = bundle / graph_file(part.name)
    precision = config.precision
    convert(traced, precision, part.calibration, graph)
    if precision == "int8" and count_quantized(graph) == 0:
        on_step(f"the {name} has no matrix product with weights to quantize: it stays as it is, in fp32")
        precision = "fp32"
        convert(traced, precision, part.calibration, graph)
    engines = {
        "cpu": EngineRecord(
            graph_file(part.name),
            "onnxruntime",
            importlib.metadata.version("onnxruntime"),
            precision,
            round(time.perf_counter() - start, 2),
        )
    }
    for target in config.targets:
        on_step(f"building the TensorRT-RTX engine of the {name} for {target} ({TARGETS[target]})")
        start = time.perf_counter()
        file = f"engines/{part.name}.{target}.engine"
        (bundle / file).write_bytes(build_engine(graph, target, part))
        seconds = round(time.perf_counter() - start, 2)
        engines[target] = EngineRecord(file, "tensorrt-rtx", library_version(), precision, seconds)
    return engines
