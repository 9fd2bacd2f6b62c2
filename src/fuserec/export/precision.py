"""A float32 ONNX graph in another precision."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

Feed = dict[str, NDArray[Any]]


def convert(source: Path, precision: str, calibration: Sequence[Feed], path: Path) -> None:
    """Write the graph `source` (float32) as `path` in `precision`.

    - `fp16`: weights and arithmetic in float16; inputs and outputs stay as they are.
    - `int8`: Q/DQ nodes around the matrix products with weights: symmetric int8, a scale per output channel for
      weights and per tensor for activations. The scales of activations are the ranges seen on `calibration`.
      Both operands are signed, which no CPU saturates on and which TensorRT asks for.

    Args:
        source: Float32 graph.
        precision: `fp32`, `fp16` or `int8`.
        calibration: Inputs of the graph, a dict a batch; read for `int8` alone.
        path: Where to write.
    """
    if precision == "fp32":
        path.write_bytes(source.read_bytes())
    elif precision == "fp16":
        _to_fp16(source, path)
    else:
        _to_int8(source, calibration, path)


def _to_fp16(source: Path, path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of weights that round to zero, which they may
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def _to_int8(source: Path, calibration: Sequence[Feed], path: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self, feeds: Sequence[Feed]) -> None:
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                # Scores times values have no weights; their error would not be bounded by a per-channel scale.
                "MatMulConstBOnly": True,
            },
        )


def count_quantized(path: Path) -> int:
    """Return how many matrix products of a graph take a dequantized int8 weight."""
    graph = onnx.load(path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    return sum(
        node.op_type in ("MatMul", "Gemm") and makers.get(node.input[1]) == "DequantizeLinear" for node in graph.node
    )
