"""Whether an exported graph computes what its module does; where it does not, the layer in which they part."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from fuserec.errors import ExportError
from fuserec.export.judging import Feed
from fuserec.export.onnx_graph import SCOPES
from fuserec.export.parts import Part
from fuserec.export.targets import Kind
from fuserec.serve.engines import OnnxRuntimeEngine

# Largest error, as a share of the largest absolute value of the output. Float32 differs by the order of additions; a
# unit in the last place is 2^-11 in float16 and 2^-8 in bfloat16, a step of 8 bits 1/127 or 1/16, and errors pass
# through layers. What it costs in ranking is the gate's question; here a graph that is wrong is told from one that is
# coarse.
TOLERANCE: Final = {"fp32": 1e-4, "fp16": 0.03, "bf16": 0.2, "int8": 0.5, "fp8": 0.5, "int8-weight-only": 0.2}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How far a graph is from its module.

    Attributes:
        error: the largest, as a share of the largest absolute value of the output.
        fault: what is wrong if that is beyond the tolerance of the precision: the input's sizes, and the first layer
            whose output is off; None otherwise.
    """

    error: float
    fault: str | None


def measure_parity(graph: Path, part: Part, precision: str, kind: Kind) -> Parity:
    """Compare a graph with the module it came from, on few and many inputs, short and long.

    Args:
        graph: runs on the CPU.
        part: the module, and the inputs.
        precision: of the graph.
        kind: of hardware that it is for; what is not for a CPU is computed as it is written.
    """
    engine = OnnxRuntimeEngine(graph, threads=2, fuse=kind == "cpu")
    worst, tolerance = 0.0, TOLERANCE[precision]
    for feed in part.check:
        error = relative_error(engine.run(feed)[part.output], part.run(feed))
        if not error <= tolerance:
            sizes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in feed.items())
            where = first_divergence(graph, part, feed, precision, kind)
            fault = f"the output is off by {error:.2g} of its largest value ({sizes}), more than the {tolerance:g} of "
            return Parity(error, f"{fault}{precision}; {where}")
        worst = max(worst, error)
    return Parity(worst, None)


def relative_error(came: Floats, expected: Floats) -> float:
    """Return the largest difference as a share of the largest absolute value that was expected; NaN is infinite."""
    if came.shape != expected.shape:
        raise ExportError(f"the graph returned {came.shape}, the module {expected.shape}")
    if not np.isfinite(came).all():
        return float("inf")
    return float(np.abs(came - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def first_divergence(graph: Path, part: Part, feed: Feed, precision: str, kind: Kind) -> str:
    """Say which layer is the first whose output is beyond the tolerance, in the order in which the module runs."""
    expected = _outputs_of_layers(part, feed)
    came = _outputs_of_scopes(graph, list(expected), feed, kind)
    for layer, values in expected.items():
        if layer in came and came[layer].shape == values.shape:
            error = relative_error(came[layer], values)
            if not error <= TOLERANCE[precision]:
                return f"the first layer that is off is {layer}, by {error:.2g} of its largest value"
    return "no layer that can be compared is off by that much: the errors add up"


@torch.inference_mode()
def _outputs_of_layers(part: Part, feed: Feed) -> dict[str, Floats]:
    """Return what every submodule that runs once returned, by its name, in the order in which they finished."""
    found: dict[str, Floats] = {}
    repeated: set[str] = set()
    hooks = []
    for name, module in part.module.named_modules():

        def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
            output = output[0] if isinstance(output, tuple) else output
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return
            if name in found:
                repeated.add(name)
            found[name] = output.numpy()

        if name:
            hooks.append(module.register_forward_hook(keep))
    try:
        part.run(feed)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: values for name, values in found.items() if name not in repeated}


def _outputs_of_scopes(graph: Path, layers: list[str], feed: Feed, kind: Kind) -> dict[str, Floats]:
    """Return the last value that the graph computes for each layer, by the names that the tracer left in it."""
    model = ir.load(graph)
    last: dict[str, ir.Value] = {}
    for scopes, value in _scoped_values(model.graph):
        for scope in scopes:
            if scope in layers:
                last[scope] = value
    present = {id(output) for output in model.graph.outputs}
    model.graph.outputs.extend(
        [value for value in {id(v): v for v in last.values()}.values() if id(value) not in present]
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "opened.onnx"
        ir.save(model, path)
        outputs = OnnxRuntimeEngine(path, fuse=kind == "cpu").run(feed)
    return {layer: outputs[str(value.name)].astype(np.float32) for layer, value in last.items()}


def _scoped_values(graph: ir.Graph) -> Iterator[tuple[list[str], ir.Value]]:
    """Yield the floating-point values of a graph in order, each with the layers in which it was computed."""
    for node in graph:
        scopes = node.metadata_props.get(SCOPES)
        if scopes and node.outputs[0].dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            # The last one is the operator's own name.
            yield ast.literal_eval(scopes)[:-1], node.outputs[0]
