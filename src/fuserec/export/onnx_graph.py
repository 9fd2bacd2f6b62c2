"""The user tower as an ONNX graph in float32."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import nn

from fuserec.contract import MAX_BATCH

OPSET = 20
INPUTS = {"user": "int64 (B,)", "history": "int64 (B, L)"}


def export_user_tower(tower: nn.Module, max_history: int, path: Path) -> None:
    """Write the tower as `path`, with dynamic batch B (1 to `MAX_BATCH`) and length L (1 to `max_history`).

    Args:
        tower: Called as `tower(user, history)` with (B,) and (B, L) int64 rows, returns (B, D) float32.
        max_history: The longest history the tower reads.
        path: Where to write; one file, weights inside.
    """
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    length = torch.export.Dim("length", min=1, max=max_history)
    # The example's sizes are neither 1 nor the limits: the tracer would take those for constants.
    user = torch.ones(2, dtype=torch.int64)
    history = torch.ones(2, max(2, max_history // 2), dtype=torch.int64)
    dynamic = ({0: batch}, {0: batch, 1: length} if max_history > 1 else {0: batch})
    # The tracer reports its progress on stdout and warns that one axis name serves two inputs, which is meant.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            tower.eval(),
            (user, history),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            input_names=list(INPUTS),
            output_names=["user_vector"],
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) returns the program")
    program.save(str(path), external_data=False)
