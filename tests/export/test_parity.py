"""A graph that is not the module is found out, and so is the layer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fuserec.export.onnx_graph import export_graph
from fuserec.export.parity import measure_parity, relative_error
from fuserec.export.parts import Part, user_tower
from fuserec.kernels import ItemIndex
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever


@pytest.fixture(scope="module")
def part(untrained: Callable[[str, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Part:
    folder = tmp_path_factory.mktemp("sasrec") / "checkpoint"
    untrained("sasrec", folder)
    checkpoint = Checkpoint.load(folder)
    module = checkpoint.module()
    assert isinstance(module, Retriever)
    index = ItemIndex.build(module.item_vectors().numpy(), checkpoint.items["item_id"].to_numpy())
    return user_tower(module, checkpoint.users, checkpoint.items, index, 16)


@pytest.fixture(scope="module")
def traced(part: Part, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "traced.onnx"
    export_graph(part, path)
    return path


def test_batches_and_lengths_are_few_and_many(part: Part) -> None:
    longest = part.max_history
    shapes = {feed["history"].shape for feed in part.check}
    assert shapes == {(batch, length) for batch in (1, 7, 64) for length in (1, longest)}


def test_the_traced_graph_is_the_module(part: Part, traced: Path) -> None:
    parity = measure_parity(traced, part, "fp32", "cpu")
    assert parity.error < 1e-5 and parity.fault is None


@pytest.mark.parametrize("layer", ["encoder.blocks.0.attention.value", "encoder.blocks.0.mlp.2"])
def test_the_first_layer_that_diverges_is_named(part: Part, traced: Path, layer: str, tmp_path: Path) -> None:
    model = ir.load(traced)
    [bias] = [value for name, value in model.graph.initializers.items() if name == f"{layer}.bias"]
    assert bias.const_value is not None
    wrong = np.random.default_rng(0).normal(0, 3, bias.const_value.shape.numpy()).astype(np.float32)
    bias.const_value = ir.tensor(wrong, name=bias.name)
    broken = tmp_path / "broken.onnx"
    ir.save(model, broken)
    parity = measure_parity(broken, part, "fp32", "cpu")
    assert parity.fault is not None and f"the first layer that is off is {layer}, by" in parity.fault
    assert "user (1,), history (1, 1)" in parity.fault


def test_weights_of_nan_are_not_a_small_error() -> None:
    wrong = np.array([[np.nan, 1.0]], dtype=np.float32)
    assert relative_error(wrong, np.ones((1, 2), dtype=np.float32)) == float("inf")
