"""The exported graph is the trained module, in every precision, at every batch size and length."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fuserec.contract import MAX_BATCH
from fuserec.errors import ExportError
from fuserec.export.calibration import largest_values
from fuserec.export.config import CALIBRATIONS
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import Part, user_tower
from fuserec.export.precision import Use, convert
from fuserec.export.targets import AHEAD_OF_TIME, PRECISIONS, TARGETS
from fuserec.export.tensorrt import build_engine, check_target
from fuserec.kernels import ItemIndex
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.serve.engines import OnnxRuntimeEngine

MAX_HISTORY = 20
# Largest error of one coordinate of a unit vector: float32 rounding; half precision; a step of 1/127 or of 3 bits of
# mantissa, through layers.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 0.03, "int8": 0.1, "fp8": 0.15, "int8-weight-only": 0.03}
# What a CPU can run, of graphs for either kind of hardware.
RUNNABLE: list[tuple[str, Use]] = [(precision, "cpu") for precision in TARGETS["cpu"].precisions]
RUNNABLE += [(precision, "emulation") for precision in PRECISIONS]


def tower_of(checkpoint: Checkpoint, calibration_users: int = 64) -> Part:
    module = checkpoint.module()
    assert isinstance(module, Retriever)
    index = ItemIndex.build(module.item_vectors().numpy(), checkpoint.items["item_id"].to_numpy())
    return user_tower(module, checkpoint.users, checkpoint.items, index, calibration_users)


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return Checkpoint.load(checkpoint_folder)


@pytest.fixture(scope="module")
def part(checkpoint: Checkpoint) -> Part:
    return tower_of(checkpoint)


@pytest.fixture(scope="module")
def traced(part: Part, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "traced.onnx"
    export_graph(part, path)
    return path


@pytest.fixture(scope="module")
def largest(part: Part, traced: Path) -> dict[str, float]:
    return largest_values(traced, part.calibration, "max")


@pytest.fixture(scope="module")
def graph(traced: Path, largest: dict[str, float]) -> Callable[[str, Use], Path]:
    """Return what makes the graph of a precision for a use, once."""

    def make(precision: str, use: Use) -> Path:
        path = traced.with_name(f"{precision}.{use}.onnx")
        if not path.exists():
            convert(traced, precision, use, largest, path)
        return path

    return make


@pytest.mark.parametrize("length", [1, 2, MAX_HISTORY])
@pytest.mark.parametrize("batch", [1, 7, MAX_BATCH])
@pytest.mark.parametrize(("precision", "use"), RUNNABLE)
def test_graph_equals_module(
    checkpoint: Checkpoint, graph: Callable[[str, Use], Path], precision: str, use: Use, batch: int, length: int
) -> None:
    rng = np.random.default_rng(batch * 100 + length)
    feed = {
        "user": rng.integers(0, checkpoint.users.height + 1, batch),
        "history": rng.integers(0, checkpoint.items.height + 1, (batch, length)),
    }
    feed["history"] = np.sort(feed["history"] > 0, axis=1) * feed["history"]  # padding only on the left
    came = OnnxRuntimeEngine(graph(precision, use), fuse=use == "cpu").run(feed)["user_vector"]
    with torch.inference_mode():
        tower = checkpoint.module().user_tower
        expected = tower(torch.from_numpy(feed["user"]), torch.from_numpy(feed["history"])).numpy()
    assert came.dtype == np.float32
    np.testing.assert_allclose(came, expected, rtol=0, atol=TOLERANCE[precision])


# In fp16 ONNX Runtime 1.31 converts weights at each run, and rows differ in their last bits.
@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weight-only"])
def test_a_row_is_bit_equal_in_any_batch(
    checkpoint: Checkpoint, graph: Callable[[str, Use], Path], precision: str
) -> None:
    """ONNX Runtime's products of one row and of many may add up in different orders."""
    rng = np.random.default_rng(0)
    engine = OnnxRuntimeEngine(graph(precision, "cpu"))
    for batch, length in [(2, MAX_HISTORY), (7, 2), (MAX_BATCH, MAX_HISTORY)]:
        users = rng.integers(0, checkpoint.users.height + 1, batch)
        histories = rng.integers(1, checkpoint.items.height + 1, (batch, length))
        histories *= np.arange(length) >= rng.integers(0, length + 1, (batch, 1))
        together = engine.run({"user": users, "history": histories})["user_vector"]
        alone = [
            engine.run({"user": users[row : row + 1], "history": histories[row : row + 1]})["user_vector"][0]
            for row in range(batch)
        ]
        wrong = [row for row in range(batch) if alone[row].tobytes() != together[row].tobytes()]
        assert not wrong, f"of {batch} rows {wrong} are not what they are alone"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_graph_tells_what_it_reads_and_refuses_the_rest(
    graph: Callable[[str, Use], Path], checkpoint: Checkpoint, precision: str
) -> None:
    path = graph(precision, "cpu")
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert told["fuserec.max_history"] == str(MAX_HISTORY) and told["fuserec.padding"] == "0"
    assert told["fuserec.n_items"] == str(checkpoint.items.height)
    ids = checkpoint.items["item_id"].to_numpy().astype("<i8").tobytes()
    assert told["fuserec.item_ids_sha256"] == hashlib.sha256(ids).hexdigest()
    history = json.loads(told["fuserec.inputs"])["history"]
    assert history["axes"][1] == {"name": "L", "min": 1, "max": MAX_HISTORY}
    assert "0 on the left" in history["values"]
    engine = OnnxRuntimeEngine(path)
    for length in (0, MAX_HISTORY + 1):
        feed = {"user": np.array([0]), "history": np.ones((1, length), dtype=np.int64)}
        with pytest.raises(ValueError, match=f"invalid history with L={length}: must be 1 to {MAX_HISTORY}"):
            engine.run(feed)
    with pytest.raises(ValueError, match="invalid user with B=0"):
        engine.run({"user": np.empty(0, np.int64), "history": np.empty((0, 1), np.int64)})


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rounding_shows(graph: Callable[[str, Use], Path], part: Part, precision: str) -> None:
    """A graph that only calls itself quantized would pass every tolerance."""
    engine = OnnxRuntimeEngine(graph(precision, "emulation"), fuse=False)
    error = max(float(np.abs(engine.run(feed)[part.output] - part.run(feed)).max()) for feed in part.check)
    least = {"fp32": 0.0, "fp16": 1e-5, "bf16": 1e-4, "int8": 1e-4, "fp8": 1e-3, "int8-weight-only": 1e-4}
    assert error >= least[precision], f"{precision} is only {error:.1e} from float32"


@pytest.mark.parametrize(
    ("precision", "use", "kinds"),
    [
        ("fp16", "gpu", {onnx.TensorProto.FLOAT16}),
        ("bf16", "gpu", {onnx.TensorProto.BFLOAT16}),
        ("int8", "cpu", {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}),
        ("int8", "gpu", {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}),
        ("fp8", "gpu", {onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT16}),
        ("int8-weight-only", "cpu", {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}),
    ],
)
def test_weights_are_stored_in_the_precision(
    graph: Callable[[str, Use], Path], precision: str, use: Use, kinds: set[int]
) -> None:
    model = onnx.load(graph(precision, use))
    matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    integers = {onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    assert {tensor.data_type for tensor in matrices} - integers == kinds
    onnx.checker.check_model(model, full_check=True)


def test_every_product_with_a_weight_is_quantized(traced: Path, largest: dict[str, float], tmp_path: Path) -> None:
    # Two of attention (query with key, value with output), two layers of an MLP in the block, two in the head.
    assert convert(traced, "int8", "cpu", largest, tmp_path / "int8.onnx") == 6
    assert convert(traced, "fp32", "cpu", largest, tmp_path / "fp32.onnx") == 0


def test_a_served_tower_is_few_operators(traced: Path) -> None:
    """A lone request pays for the number of operators, not for their size; what depends on weights alone is folded."""
    operators = Counter(node.op_type for node in onnx.load(traced).graph.node)
    assert operators.total() <= 37, f"{operators.total()} operators: {operators}"
    assert not operators.keys() & {"Einsum", "Expand", "Range"}, operators


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_calibration_measures_what_is_multiplied(part: Part, traced: Path, method: str) -> None:
    found = largest_values(traced, part.calibration, method)
    by_largest = largest_values(traced, part.calibration, "max")
    assert found.keys() == by_largest.keys()
    assert all(0 < value <= 1.001 * by_largest[name] for name, value in found.items()), "clipping only ever narrows"


@pytest.mark.parametrize("target", AHEAD_OF_TIME)
def test_engine_is_built_for_each_target(
    part: Part, graph: Callable[[str, Use], Path], target: str, tmp_path: Path
) -> None:
    for precision in TARGETS[target].precisions:
        path = tmp_path / f"{precision}.engine"
        build_engine(graph(precision, "gpu"), TARGETS[target], part, path)
        assert path.stat().st_size > 10_000, f"{precision} on {target}"


@pytest.mark.parametrize(
    ("precision", "target"), [("fp32", "sm75"), ("bf16", "sm75"), ("fp8", "sm75"), ("fp8", "sm86")]
)
def test_what_the_table_refuses_tensorrt_refuses(
    part: Part, graph: Callable[[str, Use], Path], precision: str, target: str, tmp_path: Path
) -> None:
    assert precision in TARGETS[target].refuses
    with pytest.raises(ExportError, match=f"TensorRT-RTX cannot build the engine for {target}: .+"):
        build_engine(graph(precision, "gpu"), TARGETS[target], part, tmp_path / "engine")
    assert not list(tmp_path.iterdir())


def test_file_that_is_no_graph_is_refused(part: Part, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot read the graph for sm89: .+"):
        build_engine(path, TARGETS["sm89"], part, tmp_path / "engine")


def test_tensorrt_of_the_data_centre_says_what_it_needs() -> None:
    with pytest.raises(ExportError, match="tensorrt is not installed, tensorrt-sm90 needs it: on the GPU host: pip"):
        check_target(TARGETS["tensorrt-sm90"])


@pytest.mark.parametrize("architecture", ["gru4rec", "lstm"])
def test_recurrent_cells_run_in_every_precision(
    untrained: Callable[[str, Path], None], architecture: str, tmp_path: Path
) -> None:
    """ONNX Runtime 1.31 died of float16 cells; and a second export in one process took its example's length for all."""
    untrained(architecture, tmp_path / architecture)
    checkpoint = Checkpoint.load(tmp_path / architecture)
    for name in ("first", "second"):
        part = tower_of(checkpoint, 16)
        path = tmp_path / f"{name}.onnx"
        export_graph(part, path)
        history = onnx.load(path).graph.input[1].type.tensor_type.shape.dim
        assert history[1].dim_param, f"the {name} graph reads histories of length {history[1].dim_value} alone"
    largest = largest_values(path, part.calibration, "max")
    for precision, use in RUNNABLE:
        graph = tmp_path / f"{precision}.{use}.onnx"
        convert(path, precision, use, largest, graph)
        engine = OnnxRuntimeEngine(graph, fuse=use == "cpu")
        for feed in part.check:
            error = np.abs(engine.run(feed)[part.output] - part.run(feed)).max()
            assert error < 0.2, f"{precision} for {use} is off by {error:.3f}"
    for precision in PRECISIONS:
        graph = tmp_path / f"{precision}.gpu.onnx"
        convert(path, precision, "gpu", largest, graph)
        onnx.checker.check_model(onnx.load(graph))
        build_engine(graph, TARGETS["sm89"], part, tmp_path / f"{precision}.engine")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_batch_and_length_stay_dynamic(graph: Callable[[str, Use], Path], part: Part, precision: str) -> None:
    inputs = {value.name: value for value in onnx.load(graph(precision, "gpu")).graph.input}
    for name, axes in part.inputs.items():
        dims = [dim.dim_param for dim in inputs[name].type.tensor_type.shape.dim]
        assert all(dims) and len(dims) == len(axes), f"{name} of the {precision} graph is {dims}"


def test_no_path_of_the_machine_is_in_a_graph(traced: Path) -> None:
    assert str(Path(__file__).parents[2]).encode() not in traced.read_bytes()
