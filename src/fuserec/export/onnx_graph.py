"""A part of a model as an ONNX graph in float32."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Collection
from pathlib import Path

import onnx
import torch
from onnxscript.optimizer import fold_constants, remove_unused_nodes

from fuserec.errors import ExportError
from fuserec.export.parts import Part
from fuserec.serve.engines import INPUTS

OPSET = 20
# Metadata of a node: the module it comes from, as nested names.
SCOPES = "pkg.torch.onnx.name_scopes"
NO_LIMIT = 2**62


def export_graph(part: Part, path: Path) -> None:
    """Write the module of a part as `path`, with its axes dynamic; one file, weights inside."""
    axes = {axis.name: axis for input_axes in part.inputs.values() for axis in input_axes}
    # An axis of one possible length is a constant to the tracer.
    dims = {
        name: torch.export.Dim(name, min=axis.min, max=axis.max) for name, axis in axes.items() if axis.max > axis.min
    }
    # The example's sizes are neither 1 nor the limits, which the tracer would take for constants; nor are two equal.
    sizes = {
        name: min(axis.max, max(2 + place, axis.max // 2 if axis.max <= 64 else 5 + place))
        for place, (name, axis) in enumerate(axes.items())
    }
    sizes |= {name: 2 for name in sizes if name == "B"}
    example = tuple(
        torch.ones([sizes[axis.name] for axis in input_axes], dtype=torch.int64) for input_axes in part.inputs.values()
    )
    dynamic = tuple(
        {place: dims[axis.name] for place, axis in enumerate(input_axes) if axis.name in dims}
        for input_axes in part.inputs.values()
    )
    _forget_traced_recurrences()
    # The tracer reports its progress on stdout and warns that one axis name serves two inputs, which is meant.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            part.module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            input_names=list(part.inputs),
            output_names=[part.output],
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns the program")
    # The tracer leaves large constants alone, such as the reordered weights of recurrent cells.
    fold_constants(program.model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    remove_unused_nodes(program.model)
    for node in program.model.graph:
        # Where each node comes from tells of layers that diverge; the rest is paths of this machine.
        scopes = node.metadata_props.get(SCOPES)
        node.metadata_props.clear()
        if scopes is not None:
            node.metadata_props[SCOPES] = scopes
    program.model.metadata_props.update(metadata(part))
    program.save(str(path), external_data=False)
    _check_axes(part, path, dims.keys())


def metadata(part: Part) -> dict[str, str]:
    """Return what a caller of the graph alone must know, as it is nowhere else in the file.

    Returns:
        Texts by name. `fuserec.inputs` is JSON: for each input its axes with their smallest and largest lengths
        (`fuserec.serve.engines` refuses others), and what its numbers are.
    """
    inputs = {
        name: {
            "axes": [{"name": axis.name, "min": axis.min, "max": axis.max} for axis in axes],
            "values": part.values.get(name, ""),
        }
        for name, axes in part.inputs.items()
    }
    told = {"fuserec.part": part.name, INPUTS: json.dumps(inputs), "fuserec.output": f"{part.output}: {part.shape}"}
    if part.max_history:
        told["fuserec.max_history"] = str(part.max_history)
    return told | {f"fuserec.{name}": text for name, text in part.notes.items()}


def _check_axes(part: Part, path: Path, dynamic: Collection[str]) -> None:
    """Raise unless every axis that is to be dynamic is: the tracer makes constants of some without a word."""
    for value in onnx.load(path).graph.input:
        for axis, size in zip(part.inputs[value.name], value.type.tensor_type.shape.dim, strict=True):
            if axis.name in dynamic and not size.dim_param:
                raise ExportError(
                    f"the graph of the {part.name.replace('_', ' ')} takes {size.dim_value} along {axis.name} of "
                    f"{value.name} and nothing else; expected {axis.min} to {axis.max}"
                )


def _forget_traced_recurrences() -> None:
    """Let the tracer decompose GRU and LSTM cells anew.

    While it traces, torch 2.13 replaces how they are decomposed by a loop over a dynamic length. But each operator
    remembers what it last resolved to, so after an export in the same process it finds the loop unrolled over the
    example's length, and that length becomes a constant of the graph.
    """
    for operator in (torch.ops.aten.gru.input, torch.ops.aten.lstm.input):
        operator._dispatch_cache.clear()
