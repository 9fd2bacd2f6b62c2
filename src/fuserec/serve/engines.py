"""Engines at run time: one interface over ONNX Runtime and TensorRT-RTX."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fuserec.errors import BundleError, DeviceError

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
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
# TF32 would round the factors of a float32 product to 10 bits. A second copy of memory is not taken in advance.
_PROVIDER_OPTIONS: Final = {CUDA_PROVIDER: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}}

Tensors = dict[str, NDArray[Any]]


class Engine(Protocol):
    """A built network that can be run."""

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; names, dtypes and shapes are those of the manifest's `inputs` and `outputs`."""
        ...


class OnnxRuntimeEngine:
    """An ONNX graph on the CPU, or on a GPU by ONNX Runtime's provider for it.

    Args:
        path: The `.onnx` file.
        provider: Of ONNX Runtime. What one on a GPU has no kernel for runs on the CPU.
        threads: Threads inside one operator. The towers are small, so one thread answers a request soonest, and
            leaves the other cores to the search and to other instances.
        fuse: Whether products between dequantized operands may be computed in 8 bits, which is faster; else they are
            computed as the graph is written, as one for a GPU is to be: ONNX Runtime 1.31 has no kernels for 8-bit
            floats, and its kernel for 8-bit weights beside float16 is wrong.

    Raises:
        DeviceError: The provider does not start.
    """

    def __init__(
        self, path: Path, *, threads: int = 1, fuse: bool = True, provider: str = "CPUExecutionProvider"
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not fuse:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        # Without `enable_fallback`, or the library would go on with the CPU in place of the provider.
        self._session = ort.InferenceSession(
            str(path),
            options,
            providers=[(provider, _PROVIDER_OPTIONS.get(provider, {}))],
            disabled_optimizers=DISABLED,
            enable_fallback=0,
        )
        # A provider that is not installed, or whose libraries do not load, is left out with a warning.
        if provider not in (started := self._session.get_providers()):
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} did not start {provider} and would run {path.name} by "
                f"{', '.join(started)}; see its warning above, or serve with --device cpu"
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
