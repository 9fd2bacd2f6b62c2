"""Which engine of a bundle runs on which device, and whether what is installed here can run it."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import BundleError, DeviceError
from fuserec.manifest import EngineRecord, Manifest, PartRecord
from fuserec.serve.device import CPU, Device
from fuserec.serve.engines import (
    CUDA_PROVIDER,
    ONNX_RUNTIME,
    RUNTIMES,
    TENSORRT,
    TENSORRT_MODULES,
    TENSORRT_RTX,
    TITLES,
    Engine,
    OnnxRuntimeEngine,
    TensorRTEngine,
)

logger = logging.getLogger(__name__)

CPU_TARGET: Final = "cpu"
# As a share of the largest value: a step of what is quantized to 8 bits, here and there, and of float16.
PROVIDER_TOLERANCE: Final = 0.05


@dataclass(frozen=True)
class Choice:
    """The engine of a bundle that runs.

    Attributes:
        target: Its name among the bundle's engines.
        on: What computes: `cpu`, `cuda` (ONNX Runtime's provider), or `tensorrt`.
        idle: Why a GPU that is there computes nothing of it; empty otherwise.
    """

    target: str
    on: Literal["cpu", "cuda", "tensorrt"]
    idle: str = ""


def choose_engine(engines: Mapping[str, EngineRecord], device: Device, providers: Sequence[str]) -> Choice:
    """Choose which engine of a bundle to run, and where.

    Args:
        engines: The bundle's engines by target.
        device: Where the server computes.
        providers: What the installed ONNX Runtime can run a graph by.

    Returns:
        On a GPU the engine that was built for it; else the graph for the CPU, by ONNX Runtime's CUDA provider where
        that is installed, on the CPU otherwise.

    Raises:
        BundleError: There is no engine that this machine can run.
    """
    gpu = device.target if device.kind == "cuda" else None
    for name in (gpu, f"{TENSORRT}-{gpu}"):
        if name in engines:
            return Choice(str(name), "tensorrt")
    if CPU_TARGET not in engines:
        raise BundleError(
            f"the bundle has engines for {', '.join(engines)}, and the device is {device}; export again with --target "
            f"{gpu or CPU_TARGET}"
        )
    if gpu is None:
        return Choice(CPU_TARGET, "cpu")
    if CUDA_PROVIDER in providers:
        return Choice(CPU_TARGET, "cuda")
    return Choice(
        CPU_TARGET,
        "cpu",
        f"the bundle has no engine for {gpu} (it has {', '.join(engines)}), and ONNX Runtime no {CUDA_PROVIDER} (pip "
        "install onnxruntime-gpu)",
    )


def providers_here() -> list[str]:
    """Return the execution providers that the installed ONNX Runtime has."""
    import onnxruntime as ort

    found: list[str] = ort.get_available_providers()
    return found


def open_engine(bundle: Path, manifest: Manifest, part: str, *, device: Device = CPU, threads: int = 1) -> Engine:
    """Open the engine of one part of a verified bundle that suits the device.

    Raises:
        BundleError: There is none, or what is installed here cannot run it; nothing of it was read.
        DeviceError: The CUDA provider does not start, or computes something else than the CPU.
    """
    record = manifest.parts[part]
    choice = choose_engine(record.engines, device, providers_here() if device.kind == "cuda" else ())
    engine = record.engines[choice.target]
    path = bundle / engine.file
    check_runtime(engine, choice.target)
    if choice.idle:
        logger.warning("%s runs on the CPU: %s", part, choice.idle)
    logger.info("%s on %s: %s", part, choice.on, path.name)
    if choice.on == "tensorrt":
        return TensorRTEngine(path, engine.runtime)
    try:
        if choice.on == "cpu":
            return OnnxRuntimeEngine(path, threads=threads)
        on_gpu = OnnxRuntimeEngine(path, provider=CUDA_PROVIDER, fuse=False)
        as_written = OnnxRuntimeEngine(path, threads=threads, fuse=False)
    except DeviceError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise BundleError(f"ONNX Runtime cannot load {path} ({error}); export again") from error
    check_provider(on_gpu, as_written, record, part)
    return on_gpu


def check_provider(on_gpu: Engine, on_cpu: Engine, record: PartRecord, part: str) -> None:
    """Run a graph once on the GPU and once on the CPU: an export has compared it with its module on the CPU alone.

    Raises:
        DeviceError: They differ by more than the order of additions and the steps of quantized values explain.
    """
    feed = {name: _sample(about) for name, about in record.inputs.items()}
    came, expected = on_gpu.run(feed), on_cpu.run(feed)
    for name, values in expected.items():
        difference = np.abs(came[name].astype(np.float64) - values).max(initial=0.0)
        largest = float(np.abs(values).max(initial=0.0))
        if not difference <= PROVIDER_TOLERANCE * max(largest, 1e-12):
            raise DeviceError(
                f"{part} by {CUDA_PROVIDER} differs from the CPU by {difference:.2g} in {name}, whose largest value is "
                f"{largest:.2g}; serve with --device cpu, or export an engine for this GPU"
            )


def _sample(about: str) -> NDArray[np.int64]:
    """Return an input of two rows, zeros and ones, for `int64 (B, L)`."""
    axes = about.count(",") + (0 if about.endswith(",)") else 1)
    shape = (2, 3, 3, 3)[:axes]
    values: NDArray[np.int64] = np.zeros(shape, np.int64)
    values[1] = 1
    return values


def check_runtime(engine: EngineRecord, target: str) -> None:
    """Raise unless what is installed here can run an engine for `target`.

    An ONNX graph runs under the version of ONNX Runtime that made it and later ones. A TensorRT-RTX engine runs under
    the very version that built it; another one may crash on it, so this is asked before it reads any of it.

    Raises:
        BundleError: The runtime is unknown, not the target's, not installed, or of another version.
    """
    expected = ONNX_RUNTIME if target == CPU_TARGET else TENSORRT if target.startswith(f"{TENSORRT}-") else TENSORRT_RTX
    if engine.runtime not in RUNTIMES:
        raise BundleError(
            f"{engine.file} is for the runtime {engine.runtime!r}, this fuserec has {', '.join(RUNTIMES)}; "
            "upgrade fuserec or export again"
        )
    if engine.runtime != expected:
        raise BundleError(f"{engine.file} is for {engine.runtime}, and {target} runs {expected}; export again")
    built, installed = engine.runtime_version, _installed(engine)
    if expected in TENSORRT_MODULES and installed != built:
        raise BundleError(
            f"{engine.file} was built by {TITLES[expected]} {built} and runs under no other, {installed} is installed; "
            f"pip install {expected}=={built}, or export again"
        )
    if expected == ONNX_RUNTIME and _major_minor(installed) < _major_minor(built):
        raise BundleError(
            f"{engine.file} was made with ONNX Runtime {built}, the older {installed} is installed; "
            f"pip install '{ONNX_RUNTIME}>={built}', or export again"
        )


def _installed(engine: EngineRecord) -> str:
    """Return the version of a runtime that is installed; ONNX Runtime for GPUs goes by a name of its own."""
    for name in (engine.runtime, f"{engine.runtime}-gpu") if engine.runtime == ONNX_RUNTIME else (engine.runtime,):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise BundleError(
        f"{engine.file} needs {engine.runtime}, which is not installed; "
        f"pip install {engine.runtime}=={engine.runtime_version}"
    )


def _major_minor(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in version.split(".")[:2])
    except ValueError:
        raise BundleError(f"a version of ONNX Runtime came as {version!r}, expected as in 1.20.0") from None
