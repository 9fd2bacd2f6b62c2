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
from fuserec.errors import BundleError, DeviceError
from fuserec.manifest import EngineRecord, Manifest, bundle_folder
from fuserec.serve import engine_choice, pipeline
from fuserec.serve.device import CPU, Device
from fuserec.serve.engine_choice import Choice, check_provider, check_runtime, choose_engine, open_engine
from fuserec.serve.engines import CUDA_PROVIDER, DISABLED, Engine, OnnxRuntimeEngine, Tensors
from fuserec.serve.probe import device_target

ENGINES = {
    name: EngineRecord(f"engines/{name}", "any", "1", "int8", 0.0, 0.0, {}) for name in ("cpu", "sm89", "tensorrt-sm90")
}
ALL_PROVIDERS = ["TensorrtExecutionProvider", CUDA_PROVIDER, "CPUExecutionProvider"]
CPU_PROVIDERS = ["CPUExecutionProvider"]


def gpu(target: str) -> Device:
    return Device("cuda", "a test", target)


@pytest.mark.parametrize(
    ("device", "providers", "expected"),
    [
        pytest.param(CPU, ALL_PROVIDERS, Choice("cpu", "cpu"), id="the CPU"),
        pytest.param(Device("interpret", "a test"), ALL_PROVIDERS, Choice("cpu", "cpu"), id="interpreted kernels"),
        pytest.param(gpu("sm89"), ALL_PROVIDERS, Choice("sm89", "tensorrt"), id="TensorRT-RTX"),
        pytest.param(gpu("sm89"), CPU_PROVIDERS, Choice("sm89", "tensorrt"), id="TensorRT-RTX needs no provider"),
        pytest.param(gpu("sm90"), ALL_PROVIDERS, Choice("tensorrt-sm90", "tensorrt"), id="TensorRT"),
        pytest.param(gpu("sm86"), ALL_PROVIDERS, Choice("cpu", "cuda"), id="no engine, a provider"),
    ],
)
def test_engine_that_suits_the_device(device: Device, providers: list[str], expected: Choice) -> None:
    assert choose_engine(ENGINES, device, providers) == expected


def test_network_that_leaves_the_gpu_idle_says_so() -> None:
    choice = choose_engine(ENGINES, gpu("sm86"), CPU_PROVIDERS)
    assert (choice.target, choice.on) == ("cpu", "cpu")
    assert choice.idle == (
        "the bundle has no engine for sm86 (it has cpu, sm89, tensorrt-sm90), and ONNX Runtime no "
        "CUDAExecutionProvider (pip install onnxruntime-gpu)"
    )


def test_idle_gpu_is_logged(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_engine(bundle, Manifest.read(bundle), USER_TOWER, device=gpu("sm86"))
    assert "user_tower runs on the CPU: the bundle has no engine for sm86" in caplog.text


@pytest.mark.parametrize(("device", "wanted"), [(CPU, "cpu"), (gpu("sm86"), "sm86")])
def test_bundle_without_a_fitting_engine(device: Device, wanted: str) -> None:
    with pytest.raises(BundleError, match=rf"engines for sm89, and the device is {device.kind} .*--target {wanted}$"):
        choose_engine({"sm89": ENGINES["sm89"]}, device, ALL_PROVIDERS)


def test_provider_that_does_not_start_is_no_silent_cpu(bundle: Path) -> None:
    """ONNX Runtime leaves a provider out that it does not have, warns, and computes on the CPU."""
    path = bundle / Manifest.read(bundle).parts[USER_TOWER].engines["cpu"].file
    said = r"did not start CUDAExecutionProvider and would run user_tower\.cpu\.onnx by CPUExecutionProvider"
    with pytest.warns(UserWarning, match="not in available provider names"), pytest.raises(DeviceError, match=said):
        OnnxRuntimeEngine(path, provider=CUDA_PROVIDER)


def test_provider_that_does_not_start_ends_the_opening(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "providers_here", lambda: ALL_PROVIDERS)
    with pytest.warns(UserWarning), pytest.raises(DeviceError, match="did not start"):
        open_engine(bundle, Manifest.read(bundle), USER_TOWER, device=gpu("sm86"))


class Scaled:
    """An engine whose outputs are off by a factor."""

    def __init__(self, engine: Engine, factor: float) -> None:
        self._engine, self._factor = engine, np.float32(factor)

    def run(self, inputs: Tensors) -> Tensors:
        return {name: values * self._factor for name, values in self._engine.run(inputs).items()}


def test_provider_is_compared_with_the_cpu(bundle: Path) -> None:
    record = Manifest.read(bundle).parts[USER_TOWER]
    engine = OnnxRuntimeEngine(bundle / record.engines["cpu"].file, fuse=False)
    check_provider(Scaled(engine, 1.0001), engine, record, USER_TOWER)
    for wrong in (1.2, 0.0, float("nan")):
        with pytest.raises(DeviceError, match=r"user_tower by CUDAExecutionProvider differs from the CPU by"):
            check_provider(Scaled(engine, wrong), engine, record, USER_TOWER)


def test_onnx_runtime_for_gpus_counts_as_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another distribution of the same module."""

    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr("importlib.metadata.version", version)
    check_runtime(EngineRecord("e", "onnxruntime", "1.31.0", "int8", 0.0, 0.0, {}), "cpu")


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
    monkeypatch.setattr(engine_choice, "_installed", lambda engine: {"cpu": "1.31.1"}.get(target, "1.7.1.116"))
    monkeypatch.setattr(engine_choice, "OnnxRuntimeEngine", refuse_to_read)
    monkeypatch.setattr(engine_choice, "TensorRTEngine", refuse_to_read)
    with pytest.raises(BundleError, match=message):
        open_engine(bundle, manifest, USER_TOWER, device=CPU if target == "cpu" else gpu(target))


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


@pytest.mark.gpu
@pytest.mark.skipif(
    device_target() is None or CUDA_PROVIDER not in engine_choice.providers_here(),
    reason="needs a CUDA device and onnxruntime-gpu",
)
def test_cuda_provider_equals_the_cpu(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    path = bundle / manifest.parts[USER_TOWER].engines["cpu"].file
    feed = {"user": np.array([1, 0]), "history": np.array([[0, 5], [7, 9]])}
    on_gpu = OnnxRuntimeEngine(path, provider=CUDA_PROVIDER, fuse=False).run(feed)["user_vector"]
    on_cpu = OnnxRuntimeEngine(path, fuse=False).run(feed)["user_vector"]
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-2)
