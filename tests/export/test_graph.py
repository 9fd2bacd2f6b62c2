"""The exported graph is the trained module, in every precision, at every batch size and length."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fuserec.contract import MAX_BATCH
from fuserec.errors import ExportError
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import Part, user_tower
from fuserec.export.precision import convert, count_quantized
from fuserec.export.tensorrt import build_engine
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.serve.engines import OnnxRuntimeEngine

MAX_HISTORY = 20
# Largest error of one coordinate of a unit vector: float32 rounding; half precision; a step of 1/127 through layers.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.15}


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return Checkpoint.load(checkpoint_folder)


@pytest.fixture(scope="module")
def part(checkpoint: Checkpoint) -> Part:
    module = checkpoint.module()
    assert isinstance(module, Retriever)
    return user_tower(module, checkpoint.users, checkpoint.items, 64)


@pytest.fixture(scope="module")
def traced(part: Part, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "traced.onnx"
    export_graph(part, path)
    return path


@pytest.fixture(scope="module")
def graphs(part: Part, traced: Path) -> dict[str, Path]:
    made = {}
    for precision in TOLERANCE:
        made[precision] = traced.with_name(f"{precision}.onnx")
        convert(traced, precision, part.calibration, made[precision])
    return made


@pytest.mark.parametrize("length", [1, 2, MAX_HISTORY])
@pytest.mark.parametrize("batch", [1, 7, MAX_BATCH])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_graph_equals_module(
    checkpoint: Checkpoint, graphs: dict[str, Path], precision: str, batch: int, length: int
) -> None:
    rng = np.random.default_rng(batch * 100 + length)
    feed = {
        "user": rng.integers(0, checkpoint.users.height + 1, batch),
        "history": rng.integers(0, checkpoint.items.height + 1, (batch, length)),
    }
    feed["history"] = np.sort(feed["history"] > 0, axis=1) * feed["history"]  # padding only on the left
    came = OnnxRuntimeEngine(graphs[precision]).run(feed)["user_vector"]
    with torch.inference_mode():
        tower = checkpoint.module().user_tower
        expected = tower(torch.from_numpy(feed["user"]), torch.from_numpy(feed["history"])).numpy()
    assert came.dtype == np.float32
    np.testing.assert_allclose(came, expected, rtol=0, atol=TOLERANCE[precision])
    cosine = (came * expected).sum(axis=1) / np.linalg.norm(came, axis=1)
    assert cosine.min() > (0.98 if precision == "int8" else 0.9999), f"lowest cosine is {cosine.min():.4f}"


def test_int8_graph_holds_int8_weights(graphs: dict[str, Path]) -> None:
    assert count_quantized(graphs["fp32"]) == 0
    assert count_quantized(graphs["int8"]) >= 4
    weights = [tensor for tensor in onnx.load(graphs["int8"]).graph.initializer if tensor.name.endswith("_quantized")]
    matrices = [tensor for tensor in weights if len(tensor.dims) == 2]
    assert matrices and all(tensor.data_type == onnx.TensorProto.INT8 for tensor in matrices)


def test_fp16_graph_computes_in_half_precision(graphs: dict[str, Path]) -> None:
    types = {tensor.data_type for tensor in onnx.load(graphs["fp16"]).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert graphs["fp16"].stat().st_size < 0.75 * graphs["fp32"].stat().st_size


@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89", "sm120"])
def test_engine_is_built_for_each_target(part: Part, graphs: dict[str, Path], target: str) -> None:
    assert len(build_engine(graphs["int8"], target, part)) > 10_000


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_is_built_in_each_precision(part: Part, graphs: dict[str, Path], precision: str) -> None:
    assert len(build_engine(graphs[precision], "sm89", part)) > 10_000


def test_refusal_of_tensorrt_reaches_the_user(part: Part, graphs: dict[str, Path]) -> None:
    # TensorRT-RTX has no float32 matrix products for Turing, and says so.
    with pytest.raises(ExportError, match="cannot build the engine for sm75: .+"):
        build_engine(graphs["fp32"], "sm75", part)


def test_file_that_is_no_graph_is_refused(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot read the graph for sm89: .+"):
        build_engine(path, "sm89", part)


def test_a_second_recurrent_graph_in_one_process_keeps_its_length_dynamic(
    untrained: Callable[[str, Path], None], tmp_path: Path
) -> None:
    """torch 2.13 traces the first one with a loop over the length, and took the example's for a constant later on."""
    untrained("gru4rec", tmp_path / "gru4rec")
    checkpoint = Checkpoint.load(tmp_path / "gru4rec")
    for name in ("first", "second"):
        module = checkpoint.module()
        assert isinstance(module, Retriever)
        path = tmp_path / f"{name}.onnx"
        export_graph(user_tower(module, checkpoint.users, checkpoint.items, 16), path)
        history = onnx.load(path).graph.input[1].type.tensor_type.shape.dim
        assert history[1].dim_param, f"the {name} graph reads histories of length {history[1].dim_value} alone"
