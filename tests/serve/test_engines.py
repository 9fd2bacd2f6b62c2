"""Which engine of a bundle runs on which machine."""

import logging
from pathlib import Path

import numpy as np
import pytest

from fuserec.contract import USER_TOWER
from fuserec.errors import BundleError
from fuserec.manifest import EngineRecord, Manifest
from fuserec.serve.engines import OnnxRuntimeEngine, choose_target, device_target, open_engine

ENGINES = {name: EngineRecord(f"engines/{name}", "any", "1", "int8", 0.0) for name in ("cpu", "sm89")}


@pytest.mark.parametrize(("device", "expected"), [(None, "cpu"), ("sm89", "sm89")])
def test_engine_that_suits_the_device(device: str | None, expected: str) -> None:
    assert choose_target(ENGINES, device) == expected


def test_idle_gpu_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_target(ENGINES, "sm90") == "cpu"
    assert "no engine for sm90" in caplog.text


def test_bundle_without_a_fitting_engine() -> None:
    with pytest.raises(BundleError, match="engines for sm89; this machine has no GPU"):
        choose_target({"sm89": ENGINES["sm89"]}, None)


def test_open_engine_runs_the_bundle(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    feed = {"user": np.array([1, 0]), "history": np.array([[0, 5], [7, 9]])}
    came = open_engine(bundle, manifest, USER_TOWER).run(feed)["user_vector"]
    assert came.shape == (2, manifest.dim)
    np.testing.assert_allclose(np.linalg.norm(came, axis=1), 1, atol=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(device_target() is None, reason="needs a CUDA device to run a TensorRT-RTX engine")
def test_tensorrt_engine_equals_onnx_runtime(checkpoint_folder: Path, tmp_path: Path) -> None:
    from fuserec.export import TARGETS, ExportConfig, export_checkpoint
    from fuserec.serve.engines import TensorRTRTXEngine

    target = str(device_target())
    if target not in TARGETS:
        pytest.skip(f"TensorRT-RTX has no target {target}")
    export_checkpoint(checkpoint_folder, tmp_path / "r", ExportConfig(precision="fp32", targets=(target,)))
    engines = tmp_path / "r" / "recommend" / "1" / "engines"
    feed = {"user": np.array([1, 0]), "history": np.array([[0, 5], [7, 9]])}
    on_gpu = TensorRTRTXEngine(engines / f"user_tower.{target}.engine").run(feed)["user_vector"]
    on_cpu = OnnxRuntimeEngine(engines / "user_tower.cpu.onnx").run(feed)["user_vector"]
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-2)
