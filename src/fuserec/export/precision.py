"""A float32 graph in another precision, as its target is to have it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import onnx_ir as ir

from fuserec.export.halving import round_to_bf16, to_bf16, to_fp16
from fuserec.export.quantize import FP8, INT8, INT8_WEIGHTS, quantize

SCHEMES: Final = {"int8": INT8, "fp8": FP8, "int8-weight-only": INT8_WEIGHTS}

# What a graph is for: to run on a CPU, to become an engine for a GPU, or to compute on a CPU what that engine will.
Use = Literal["cpu", "gpu", "emulation"]


def convert(source: Path, precision: str, use: Use, largest: Mapping[str, float], path: Path) -> int:
    """Write the graph `source` in a precision as `path`.

    - `fp32`: as it is.
    - `fp16`, `bf16`: weights and arithmetic; inputs and outputs stay as they are.
    - `int8`, `fp8`: both operands of the products with weights.
    - `int8-weight-only`: the weights of these products; arithmetic as in the rest.

    What is not quantized stays in float32 for a CPU and is float16 for a GPU, as each has it fastest. An emulation is
    the graph for the GPU, but for bfloat16, which ONNX Runtime does not compute with: that is float32, rounded where
    tensor cores round.

    Args:
        source: float32 graph.
        precision: one of `targets.PRECISIONS`.
        use: what the graph is for.
        largest: largest absolute values of the activations, from `calibration.largest_values`; for `int8` and `fp8`.
        path: where to write.

    Returns:
        How many products were quantized.
    """
    model = ir.load(source)
    quantized = 0
    if precision == "bf16":
        (round_to_bf16 if use == "emulation" else to_bf16)(model)
    elif precision == "fp16" or (precision in SCHEMES and use != "cpu"):
        model = to_fp16(model)
    if precision in SCHEMES:
        quantized = quantize(model, SCHEMES[precision], largest)
    ir.save(model, path)
    return quantized
