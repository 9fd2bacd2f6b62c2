"""Engines at run time: one interface over ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import BundleError
from fuserec.manifest import EngineRecord, Manifest

logger = logging.getLogger(__name__)

# ONNX Runtime 1.31 dies of a segmentation fault while it optimizes recurrent cells in float16 by this.
DISABLED: Final = ["FuseFp16InitializerToFp32NodeTransformer"]

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
        fuse: Whether products between dequantized operands may be computed in 8 bits, which is faster, but is not
            there for 8-bit floats; else they are computed as the graph is written.
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

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


class TensorRTRTXEngine:
    """A TensorRT-RTX engine on the current CUDA device; device memory is held by torch.

    It cannot run on a machine without a GPU; `tests/serve/test_engines.py` runs it where there is one.
    """

    def __init__(self, path: Path) -> None:
        import tensorrt_rtx as trt
        import torch

        self._torch = torch
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise BundleError(
                f"TensorRT-RTX {trt.__version__} cannot load {path}: it was built for another GPU or by another "
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
                raise RuntimeError("TensorRT-RTX did not accept the batch; its log says why")
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
    if device in engines:
        return str(device)
    if "cpu" not in engines:
        raise BundleError(f"the bundle has engines for {', '.join(engines)}; this machine has {device or 'no GPU'}")
    if device is not None:
        logger.warning("no engine for %s (have %s): the GPU stays idle, serving from the CPU", device, list(engines))
    return "cpu"


def open_engine(bundle: Path, manifest: Manifest, part: str, *, threads: int = 1) -> Engine:
    """Open the engine of one part of a verified bundle that suits this machine."""
    engines = manifest.parts[part].engines
    target = choose_target(engines, device_target())
    path = bundle / engines[target].file
    logger.info("%s on %s: %s", part, target, path.name)
    return OnnxRuntimeEngine(path, threads=threads) if target == "cpu" else TensorRTRTXEngine(path)
