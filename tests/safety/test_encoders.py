"""A pretrained encoder, or a graph, brings weights and sizes; no code of its own is run, no file beside it read."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fuserec.errors import DataError
from fuserec.serve.engines import OnnxRuntimeEngine
from fuserec.train.pretrained import load_pretrained
from tests.conftest import write_encoder
from tests.safety.hostile import malicious_pickle, malicious_torch_file


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "encoder"
    write_encoder(folder, ["some words"])
    return folder


@pytest.mark.parametrize("content", [malicious_pickle, malicious_torch_file], ids=lambda make: make.__name__)
def test_weights_that_are_pickle_are_refused(encoder: Path, tmp_path: Path, content: Callable[[Path], bytes]) -> None:
    (encoder / "model.safetensors").unlink()
    (encoder / "pytorch_model.bin").write_bytes(content(tmp_path / "it ran"))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_pretrained(str(encoder))
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("model_type", ["bert", "evil"])
def test_code_beside_the_weights_is_not_run(encoder: Path, tmp_path: Path, model_type: str) -> None:
    (encoder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'it ran')!r}).touch()\n")
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (encoder / "config.json").write_text(json.dumps(config))
    if model_type == "bert":
        assert load_pretrained(str(encoder)).state
    else:
        with pytest.raises(DataError, match="cannot be loaded"):
            load_pretrained(str(encoder))
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("is_absolute", [True, False], ids=["absolute", "upwards"])
def test_graph_whose_weights_lie_elsewhere_is_refused(tmp_path: Path, *, is_absolute: bool) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "engines"
    secret.write_bytes(bytes(16))
    folder.mkdir()
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    entry = weights.external_data.add()
    entry.key, entry.value = "location", str(secret) if is_absolute else os.path.relpath(secret, folder)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "graph", [], [output], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "engine.onnx")
    with pytest.raises(Exception, match="External data path"):
        OnnxRuntimeEngine(folder / "engine.onnx")
