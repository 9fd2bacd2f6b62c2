"""A float32 graph in float16 or bfloat16."""

from __future__ import annotations

import warnings
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

# The smallest positive number of float16: nothing rounds to zero that was none.
SMALLEST: Final = 2.0**-24
LARGEST: Final = 65_504.0
# Of the operators in use, those that ONNX 20 does not know in bfloat16.
FLOAT32_OPS: Final = ("GRU", "LSTM", "Conv", "Range")


def to_fp16(model: ir.Model) -> ir.Model:
    """Return the graph with weights and arithmetic in float16; inputs and outputs stay as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of weights that round to zero, which they may
        halved: ir.Model = ir.from_proto(
            convert_float_to_float16(ir.to_proto(model), keep_io_types=True, min_positive_val=SMALLEST)
        )
    _bound_clips(halved.graph)
    return halved


def _bound_clips(graph: ir.Graph) -> None:
    """Give clips without an upper bound that of float16: TensorRT takes the one of float32, and complains on stdout."""
    for node in graph:
        x, *bounds = node.inputs
        if node.op_type == "Clip" and x is not None and x.dtype == ir.DataType.FLOAT16 and len(bounds) < 2:
            largest = ir.tensor(np.array(LARGEST, dtype=np.float16))
            name = f"{node.name}_max"
            bound = ir.Value(name=name, type=ir.TensorType(largest.dtype), shape=ir.Shape([]), const_value=largest)
            graph.register_initializer(bound)
            node.resize_inputs(3)
            node.replace_input_with(2, bound)


def to_bf16(model: ir.Model) -> None:
    """Put weights and arithmetic of a graph into bfloat16, in place; inputs and outputs stay as they are."""
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            value.const_value = _in_bf16(value.const_value, value.name)
            value.dtype = ir.DataType.BFLOAT16
    for node in list(graph):
        _retype_attributes(node)
        if node.op_type in FLOAT32_OPS:
            _surround(graph, node)
            continue
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT:
                output.dtype = ir.DataType.BFLOAT16
    for place, output in enumerate(graph.outputs):
        if output.dtype == ir.DataType.BFLOAT16:
            name = output.name
            output.name = f"{name}_bf16"
            cast = _cast(output, ir.DataType.FLOAT, str(name))
            graph.append(cast)
            graph.outputs[place] = cast.outputs[0]


def round_to_bf16(model: ir.Model) -> None:
    """Make a float32 graph compute what `to_bf16` would, in place: every number in it is rounded to bfloat16.

    ONNX Runtime has no bfloat16 arithmetic on a CPU. Tensor cores multiply bfloat16 and add up in float32, so rounding
    what goes into and comes out of every operator is what they do, but for the order of additions.
    """
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None:
            rounded = value.const_value.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
            value.const_value = ir.tensor(rounded, name=value.name)
    for node in list(graph):
        for output in node.outputs:
            if output.dtype != ir.DataType.FLOAT or not output.uses():
                continue
            down = _cast(output, ir.DataType.BFLOAT16, f"{output.name}_down")
            up = _cast(down.outputs[0], ir.DataType.FLOAT, f"{output.name}_rounded")
            graph.insert_after(node, [down, up])
            ir.convenience.replace_all_uses_with(output, up.outputs[0])
            down.replace_input_with(0, output)


def _in_bf16(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(ml_dtypes.bfloat16), dtype=ir.DataType.BFLOAT16, name=name)


def _retype_attributes(node: ir.Node) -> None:
    """Casts to float32, and constants in attributes."""
    for name, attribute in list(node.attributes.items()):
        if node.op_type == "Cast" and name == "to" and attribute.value == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64("to", int(ir.DataType.BFLOAT16))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrTensor(name, _in_bf16(attribute.value, None))
        elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
            numbers: Any = np.array(attribute.value, dtype=np.float32)
            del node.attributes[name]
            node.attributes["value"] = ir.AttrTensor("value", _in_bf16(ir.tensor(numbers), None))


def _surround(graph: ir.Graph, node: ir.Node) -> None:
    """Let one node compute in float32."""
    casts: dict[str | None, ir.Value] = {}  # the first state and the first memory of a cell can be one tensor
    for place, given in enumerate(node.inputs):
        if given is not None and given.dtype == ir.DataType.BFLOAT16:
            if given.name not in casts:
                cast = _cast(given, ir.DataType.FLOAT, f"{given.name}_for_{node.name}")
                graph.insert_before(node, cast)
                casts[given.name] = cast.outputs[0]
            node.replace_input_with(place, casts[given.name])
    for output in node.outputs:
        if output.dtype == ir.DataType.FLOAT and output.uses():
            cast = _cast(output, ir.DataType.BFLOAT16, f"{output.name}_bf16")
            graph.insert_after(node, cast)
            ir.convenience.replace_all_uses_with(output, cast.outputs[0])
            cast.replace_input_with(0, output)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(dtype)})
    node.name = node.outputs[0].name = name
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    return node
