"""Which engine of a bundle runs on which machine."""

import dataclasses
import importlib.metadata
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fuserec.contract import USER_TOWER
from fuserec.errors import BundleError
from fuserec.manifest import EngineRecord, Manifest, bundle_folder
from fuserec.serve import engines, pipeline
from fuserec.serve.engines import DISABLED, OnnxRuntimeEngine, check_runtime, choose_target, device_target, open_engine

ENGINES = {name: EngineRecord(f"engines/{name}", "any", "1", "int8", 0.0, 0.0, {}) for name in ("cpu", "sm89")}


@pytest.mark.parametrize(("device", "expected"), [(None, "cpu"), ("sm89", "sm89")])
def test_engine_that_suits_the_device(device: str | None, expected: str) -> None:
    assert choose_target(ENGINES, device) == expected


def test_idle_gpu_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_target(ENGINES, "sm90") == "cpu"
    assert "no engine for sm90" in caplog.text


def test_bundle_without_a_fitting_engine() -> None:
    with pytest.raises(BundleError, match="engines for sm89; this machine has no GPU; export again$"):
        choose_target({"sm89": ENGINES["sm89"]}, None)
    with pytest.raises(BundleError, match="engines for sm89; this machine has sm86; export again with --target sm86$"):
        choose_target({"sm89": ENGINES["sm89"]}, "sm86")


def test_open_engine_runs_the_bundle(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    feed = {"user": np.array([1, 0]), "history": np.array([[0, 5], [7, 9]])}
    came = open_engine(bundle, manifest, USER_TOWER).run(feed)["user_vector"]
    assert came.shape == (2, manifest.dim)
    np.testing.assert_allclose(np.linalg.norm(came, axis=1), 1, atol=0.05)


def test_quantized_products_are_computed_in_eight_bits(bundle: Path, tmp_path: Path) -> None:
    """Not dequantized and multiplied as floats, which is slower than if nothing were quantized."""
    import onnx
    import onnxruntime as ort

    record = Manifest.read(bundle).parts[USER_TOWER].engines["cpu"]
    assert record.precision == "int8"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(bundle / record.file), options, ["CPUExecutionProvider"], disabled_optimizers=DISABLED)
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert nodes.count("MatMulIntegerToFloat") == 6 and "DequantizeLinear" not in nodes, nodes


def refuse_to_read(*arguments: object) -> None:
    pytest.fail("the engine was read before its record was looked at")


@pytest.mark.parametrize(
    ("target", "record", "message"),
    [
        pytest.param(
            "sm89",
            {"runtime_version": "1.7.0.1"},
            r"sm89.engine was built by TensorRT-RTX 1\.7\.0\.1 and runs under no other, 1\.7\.1\.116 is installed; "
            r"pip install tensorrt-rtx==1\.7\.0\.1, or export again",
            id="another TensorRT-RTX",
        ),
        pytest.param(
            "cpu",
            {"runtime_version": "1.99.1"},
            r"made with ONNX Runtime 1\.99\.1, the older 1\.31\.1 is installed; pip install 'onnxruntime>=1\.99\.1'",
            id="older ONNX Runtime",
        ),
        pytest.param("cpu", {"runtime_version": "newest"}, "version of ONNX Runtime came as 'newest'", id="no version"),
        pytest.param(
            "cpu",
            {"runtime": "abacus"},
            "the runtime 'abacus', this fuserec has onnxruntime, tensorrt-rtx, tensorrt; upgrade fuserec",
            id="unknown runtime",
        ),
        pytest.param("sm89", {"runtime": "onnxruntime"}, "sm89 runs tensorrt-rtx; export again", id="another target"),
        pytest.param("cpu", {"runtime": "tensorrt-rtx"}, "cpu runs onnxruntime; export again", id="a GPU's for cpu"),
    ],
)
def test_engine_that_cannot_run_here_is_refused_unread(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, target: str, record: dict[str, str], message: str
) -> None:
    manifest = Manifest.read(bundle)
    built = manifest.parts[USER_TOWER].engines
    built[target] = dataclasses.replace(built[target], **record)
    monkeypatch.setattr(engines, "device_target", lambda: None if target == "cpu" else target)
    monkeypatch.setattr(engines, "_installed", lambda engine: {"cpu": "1.31.1"}.get(target, "1.7.1.116"))
    monkeypatch.setattr(engines, "OnnxRuntimeEngine", refuse_to_read)
    monkeypatch.setattr(engines, "TensorRTEngine", refuse_to_read)
    with pytest.raises(BundleError, match=message):
        open_engine(bundle, manifest, USER_TOWER)


def test_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    with pytest.raises(BundleError, match="needs tensorrt-rtx, which is not installed; pip install tensorrt-rtx==1.7"):
        check_runtime(EngineRecord("e", "tensorrt-rtx", "1.7", "int8", 0.0, 0.0, {}), "sm89")


def test_newer_onnx_runtime_is_fine(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    built = manifest.parts[USER_TOWER].engines
    built["cpu"] = dataclasses.replace(built["cpu"], runtime_version="1.9.0")
    open_engine(bundle, manifest, USER_TOWER)


def test_what_the_exporter_records_is_what_is_asked_for(bundle: Path) -> None:
    for target, engine in Manifest.read(bundle).parts[USER_TOWER].engines.items():
        check_runtime(engine, target)


@pytest.mark.parametrize(
    "damage", [pytest.param(Path.unlink, id="missing"), pytest.param(lambda p: p.write_bytes(b"\x08"), id="changed")]
)
def test_damaged_bundle_is_not_opened(
    repository: Path, tmp_path: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    damage(copy / "recommend/1/engines/user_tower.sm89.engine")
    monkeypatch.setattr(pipeline, "open_engine", refuse_to_read)
    with pytest.raises(BundleError, match=r"sm89\.engine .*export again"):
        pipeline.Pipeline.open(bundle_folder(copy))


@pytest.mark.gpu
@pytest.mark.skipif(device_target() is None, reason="needs a CUDA device to run a TensorRT-RTX engine")
def test_tensorrt_engine_equals_onnx_runtime(checkpoint_folder: Path, tmp_path: Path) -> None:
    from fuserec.export import TARGETS, ExportConfig, export_checkpoint
    from fuserec.serve.engines import TensorRTEngine

    target = str(device_target())
    if target not in TARGETS:
        pytest.skip(f"TensorRT-RTX has no target {target}")
    export_checkpoint(checkpoint_folder, tmp_path / "r", ExportConfig(precision="fp32", targets=(target,)))
    engines = tmp_path / "r" / "recommend" / "1" / "engines"
    feed = {"user": np.array([1, 0]), "history": np.array([[0, 5], [7, 9]])}
    on_gpu = TensorRTEngine(engines / f"user_tower.{target}.engine", "tensorrt-rtx").run(feed)["user_vector"]
    on_cpu = OnnxRuntimeEngine(engines / "user_tower.cpu.onnx").run(feed)["user_vector"]
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-2)
