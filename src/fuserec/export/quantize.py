"""Quantization of the products with weights of a graph, as Q/DQ nodes that ONNX Runtime and TensorRT both read.

    x ---> QuantizeLinear ---> DequantizeLinear ---+
                                                   +---> MatMul ---> + bias --->
    weight in int8 ----------> DequantizeLinear ---+

Both operands are symmetric and signed, which no CPU saturates on and which TensorRT asks for. Weights have a scale for
each output channel, activations one for the tensor. Products of two activations, as in attention, are left alone: what
a step of 1/127 does to a softmax is not bounded by any weight. So are recurrent cells, for which neither runtime has
quantized kernels that read such a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CALIBRATED_OPS: Final = ("MatMul", "Gemm", "Conv")
DEFAULTS_OF_GEMM: Final = {"alpha": 1.0, "beta": 1.0, "transA": 0}


@dataclass(frozen=True)
class Scheme:
    """How numbers are stored.

    Attributes:
        dtype: of the quantized values.
        largest: the largest of them; scales map the largest absolute value of a tensor on it.
        activations: whether activations are quantized, too.
    """

    dtype: ir.DataType
    largest: float
    activations: bool


INT8: Final = Scheme(ir.DataType.INT8, 127.0, activations=True)
# e4m3: 4 bits of exponent, 3 of mantissa, no infinity (Micikevicius et al. 2022).
FP8: Final = Scheme(ir.DataType.FLOAT8E4M3FN, 448.0, activations=True)
INT8_WEIGHTS: Final = Scheme(ir.DataType.INT8, 127.0, activations=False)


@dataclass(frozen=True)
class _Product:
    """A node that multiplies an activation by a weight, and along which axis of the weight its output channels lie."""

    node: ir.Node
    weight: NDArray[Any]
    axis: int


def quantize(model: ir.Model, scheme: Scheme, largest: Mapping[str, float]) -> int:
    """Quantize a graph in place.

    Args:
        model: its floating-point type, float32 or float16, is that of the scales and of what is not quantized.
        scheme: how.
        largest: largest absolute value of every activation, by name; read if `scheme` quantizes activations.

    Returns:
        How many products were quantized.
    """
    graph = model.graph
    quantized_inputs: dict[str, ir.Value] = {}
    products = list(_products(graph))
    for product in products:
        node = product.node
        _make_plain(graph, product)
        weight = node.inputs[1]
        assert weight is not None and weight.name is not None
        scale = _scale(np.abs(product.weight).max(axis=_all_but(product), keepdims=False), scheme)
        stored = _stored(product, scale, scheme)
        name = f"{weight.name}_{node.name}"
        dequantized = _node(
            "DequantizeLinear",
            [
                _initializer(graph, f"{name}_quantized", ir.tensor(stored, dtype=scheme.dtype)),
                _initializer(graph, f"{name}_scale", ir.tensor(scale.astype(product.weight.dtype))),
                _zero(graph, f"{name}_zero", scheme, scale.shape),
            ],
            f"{name}_dequantized",
            {"axis": product.axis},
        )
        graph.insert_before(node, dequantized)
        node.replace_input_with(1, dequantized.outputs[0])
        if scheme.activations:
            activation = node.inputs[0]
            assert activation is not None and activation.name is not None
            if activation.name not in quantized_inputs:
                quantized_inputs[activation.name] = _quantize_activation(
                    graph, node, activation, scheme, largest[activation.name], product.weight.dtype
                )
            node.replace_input_with(0, quantized_inputs[activation.name])
    _drop_unused(graph)
    return len(products)


def _products(graph: ir.Graph) -> Iterator[_Product]:
    """Find the nodes that multiply by a constant matrix or convolve with a constant kernel."""
    for node in graph:
        if node.op_type not in CALIBRATED_OPS or node.inputs[1] is None:
            continue
        constant = ir.convenience.get_const_tensor(node.inputs[1])
        if constant is None or len(constant.shape) < 2:
            continue
        weight = constant.numpy()
        if node.op_type == "Conv":
            yield _Product(node, weight, 0)
        elif node.op_type == "MatMul" and weight.ndim == 2:
            yield _Product(node, weight, 1)
        elif node.op_type == "Gemm" and all(
            (attribute := node.attributes.get(name)) is None or attribute.value == default
            for name, default in DEFAULTS_OF_GEMM.items()
        ):
            transposed = node.attributes.get("transB")
            yield _Product(node, weight.T if transposed is not None and transposed.value else weight, 1)


def _make_plain(graph: ir.Graph, product: _Product) -> None:
    """Turn Gemm into MatMul and Add: its bias would have to be quantized with it; its weight is often transposed."""
    node = product.node
    if node.op_type != "Gemm":
        return
    node.op_type = "MatMul"
    node.attributes.clear()
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if len(node.inputs) > 2:
        node.resize_inputs(2)
    if bias is None:
        return
    output = node.outputs[0]
    add = _node("Add", [output, bias], f"{output.name}_biased")
    add.outputs[0].type, add.outputs[0].shape = output.type, output.shape
    graph.insert_after(node, add)
    ir.convenience.replace_all_uses_with(output, add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, output)
    # The sum is what was known by the name of the product.
    name, output.name = output.name, f"{output.name}_product"
    add.outputs[0].name = name


def _quantize_activation(
    graph: ir.Graph, before: ir.Node, x: ir.Value, scheme: Scheme, largest: float, dtype: np.dtype[Any]
) -> ir.Value:
    """Put Q and DQ behind an activation."""
    scale = _scale(np.array(largest), scheme).astype(dtype)
    operands = [_initializer(graph, f"{x.name}_scale", ir.tensor(scale)), _zero(graph, f"{x.name}_zero", scheme, ())]
    quantized = _node("QuantizeLinear", [x, *operands], f"{x.name}_quantized")
    dequantized = _node("DequantizeLinear", [quantized.outputs[0], *operands], f"{x.name}_dequantized")
    graph.insert_before(before, [quantized, dequantized])
    return dequantized.outputs[0]


def _all_but(product: _Product) -> tuple[int, ...]:
    return tuple(axis for axis in range(product.weight.ndim) if axis != product.axis)


def _scale(largest: NDArray[Any], scheme: Scheme) -> NDArray[np.float32]:
    """Return the step of one unit; a tensor of nothing but zeros has any step, and float16 has room for this one."""
    scale = np.asarray(largest, dtype=np.float32) / np.float32(scheme.largest)
    return np.maximum(scale, np.float32(2.0**-20)).astype(np.float32)


def _stored(product: _Product, scale: NDArray[np.float32], scheme: Scheme) -> NDArray[Any]:
    shape = [1] * product.weight.ndim
    shape[product.axis] = -1
    steps = product.weight.astype(np.float32) / scale.reshape(shape)
    if scheme.dtype == ir.DataType.INT8:
        return np.clip(np.rint(steps), -127, 127).astype(np.int8)
    return np.clip(steps, -scheme.largest, scheme.largest).astype(ml_dtypes.float8_e4m3fn)


def _zero(graph: ir.Graph, name: str, scheme: Scheme, shape: tuple[int, ...]) -> ir.Value:
    """The zero point, which also says which type is meant."""
    kind = np.int8 if scheme.dtype == ir.DataType.INT8 else ml_dtypes.float8_e4m3fn
    return _initializer(graph, name, ir.tensor(np.zeros(shape, dtype=kind), dtype=scheme.dtype))


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _node(op: str, inputs: list[ir.Value], output: str, attributes: dict[str, int] | None = None) -> ir.Node:
    node = ir.node(op, inputs, attributes)
    node.name, node.outputs[0].name = output, output
    return node


def _drop_unused(graph: ir.Graph) -> None:
    """Remove the float weights that nobody reads any longer."""
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
