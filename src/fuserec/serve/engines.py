"""Engines at run time: one interface over ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import BundleError
from fuserec.manifest import EngineRecord, Manifest

logger = logging.getLogger(__name__)

DISABLED: Final = [
    # ONNX Runtime 1.31 dies of a segmentation fault while it optimizes recurrent cells in float16 by this.
    "FuseFp16InitializerToFp32NodeTransformer",
    # It joins a product of quantized operands and the addition after it, for which there is no kernel in 8 bits:
    # weights are then dequantized at every run, and a row alone has other bits than in a batch.
    "MatMulAddFusion",
]
# Runtimes by the names that they are installed under.
ONNX_RUNTIME: Final = "onnxruntime"
TENSORRT_RTX: Final = "tensorrt-rtx"
TENSORRT: Final = "tensorrt"
RUNTIMES: Final = (ONNX_RUNTIME, TENSORRT_RTX, TENSORRT)
# The two have one API.
TENSORRT_MODULES: Final = {TENSORRT_RTX: "tensorrt_rtx", TENSORRT: "tensorrt"}
TITLES: Final = {TENSORRT_RTX: "TensorRT-RTX", TENSORRT: "TensorRT"}

# Metadata of a graph: JSON of the inputs, their axes and the lengths that these may have.
INPUTS: Final = "fuserec.inputs"

Tensors = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A built network that can be run."""

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; names, dtypes and shapes are those of the manifest's `inputs` and `outputs`."""
        ...


class OnnxRuntimeEngine:
    """An ONNX graph on the CPU.

    Args:
        path: The `.onnx` file.
        threads: Threads inside one operator. The towers are small, so one thread answers a request soonest, and
            leaves the other cores to the search and to other instances.
        fuse: Whether products between dequantized operands may be computed in 8 bits, which is faster; else they are
            computed as the graph is written, as one for a GPU is to be: ONNX Runtime 1.31 has no kernels for 8-bit
            floats, and its kernel for 8-bit weights beside float16 is wrong.
    """

    def __init__(self, path: Path, *, threads: int = 1, fuse: bool = True) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not fuse:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._session = ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED
        )
        self._outputs = [output.name for output in self._session.get_outputs()]
        told = json.loads(self._session.get_modelmeta().custom_metadata_map.get(INPUTS, "{}"))
        self._axes = {
            name: [(axis["name"], axis["min"], axis["max"]) for axis in one["axes"]] for name, one in told.items()
        }

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch.

        Raises:
            ValueError: An input is shorter or longer than the graph can read.
        """
        for name, axes in self._axes.items():
            for (axis, least, most), size in zip(axes, inputs[name].shape, strict=True):
                if not least <= size <= most:
                    raise ValueError(f"invalid {name} with {axis}={size}: must be {least} to {most}")
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


class TensorRTEngine:
    """An engine of TensorRT-RTX or TensorRT on the current CUDA device; device memory is held by torch.

    It cannot run on a machine without a GPU; `tests/serve/test_engines.py` runs it where there is one.
    """

    def __init__(self, path: Path, runtime: str) -> None:
        import torch

        trt = import_module(TENSORRT_MODULES[runtime])

        self._torch = torch
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(
                f"{TITLES[runtime]} {trt.__version__} cannot load {path}: it was built for another GPU or by another "
                "version; export again for this one"
            )
        self._engine = engine
        self._context = engine.create_execution_context()
        self._stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no types here
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._dtypes = {
            name: getattr(torch, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name) for name in self._outputs
        }

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch: copy in, execute, copy out."""
        torch = self._torch
        with torch.cuda.stream(self._stream):
            held = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])).cuda() for name in self._inputs}
            for name, tensor in held.items():
                self._context.set_input_shape(name, tuple(tensor.shape))
            for name in self._outputs:
                shape = tuple(self._context.get_tensor_shape(name))
                held[name] = torch.empty(shape, dtype=self._dtypes[name], device="cuda")
            for name, tensor in held.items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                raise RuntimeError("the engine did not accept the batch; the log says why")
            answer = {name: held[name].cpu() for name in self._outputs}
        return {name: tensor.numpy() for name, tensor in answer.items()}


def device_target() -> str | None:
    """Return the target name (`sm89`) of CUDA device 0, None where there is none; asks the driver, needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the driver API.
    for value, attribute in ((major, 75), (minor, 76)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
    return f"sm{major.value}{minor.value}"


def choose_target(engines: dict[str, EngineRecord], device: str | None) -> str:
    """Choose which engine of a bundle to run.

    Args:
        engines: The bundle's engines by target.
        device: Target name of the GPU at hand, None for none.

    Returns:
        `device` when the bundle has an engine for it, else `cpu`, with a warning when a GPU stays idle.

    Raises:
        BundleError: There is no engine that this machine can run.
    """
    for name in (device, f"{TENSORRT}-{device}"):
        if name in engines:
            return str(name)
    if "cpu" not in engines:
        raise BundleError(
            f"the bundle has engines for {', '.join(engines)}; this machine has {device or 'no GPU'}; "
            f"export again{f' with --target {device}' if device else ''}"
        )
    if device is not None:
        logger.warning("no engine for %s (have %s): the GPU stays idle, serving from the CPU", device, list(engines))
    return "cpu"


def open_engine(bundle: Path, manifest: Manifest, part: str, *, threads: int = 1) -> Engine:
    """Open the engine of one part of a verified bundle that suits this machine.

    Raises:
        BundleError: There is none, or what is installed here cannot run it; nothing of it was read.
    """
    engines = manifest.parts[part].engines
    target = choose_target(engines, device_target())
    path = bundle / engines[target].file
    check_runtime(engines[target], target)
    logger.info("%s on %s: %s", part, target, path.name)
    if target != "cpu":
        return TensorRTEngine(path, engines[target].runtime)
    try:
        return OnnxRuntimeEngine(path, threads=threads)
    except Exception as error:  # the library raises nothing narrower
        raise BundleError(f"ONNX Runtime cannot load {path} ({error}); export again") from error


def check_runtime(engine: EngineRecord, target: str) -> None:
    """Raise unless what is installed here can run an engine for `target`.

    An ONNX graph runs under the version of ONNX Runtime that made it and later ones. A TensorRT-RTX engine runs under
    the very version that built it; another one may crash on it, so this is asked before it reads any of it.

    Raises:
        BundleError: The runtime is unknown, not the target's, not installed, or of another version.
    """
    expected = ONNX_RUNTIME if target == "cpu" else TENSORRT if target.startswith(f"{TENSORRT}-") else TENSORRT_RTX
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
    try:
        return importlib.metadata.version(engine.runtime)
    except importlib.metadata.PackageNotFoundError:
        raise BundleError(
            f"{engine.file} needs {engine.runtime}, which is not installed; "
            f"pip install {engine.runtime}=={engine.runtime_version}"
        ) from None


def _major_minor(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in version.split(".")[:2])
    except ValueError:
        raise BundleError(f"a version of ONNX Runtime came as {version!r}, expected as in 1.20.0") from None
