"""ONNX graph to engine: by TensorRT-RTX, ahead of time, or by TensorRT, on the GPU that it is for; the API is one."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from fuserec.errors import ExportError
from fuserec.export.cache import cached
from fuserec.export.parts import Part
from fuserec.export.targets import Target
from fuserec.files import replacing_file
from fuserec.serve.engines import TENSORRT_MODULES, TITLES
from fuserec.serve.probe import device_target

INSTALL: Final = {
    "tensorrt-rtx": "pip install 'fuserec[export]'",
    "tensorrt": "on the GPU host: pip install tensorrt, or export inside NVIDIA's TensorRT or Triton container",
}


def library_version(target: Target) -> str:
    """Return the version of the target's library; an engine runs under the version that built it and no other.

    Raises:
        ExportError: The library is not installed; the message says how to.
    """
    return str(_library(target).__version__)


def check_target(target: Target) -> None:
    """Raise unless engines for a target can be built here.

    Raises:
        ExportError: Its library is not installed, or builds only on the GPU that it is for and this is none.
    """
    _library(target)
    if target.runtime == "tensorrt" and (here := device_target()) != target.capability:
        raise ExportError(
            f"TensorRT builds engines on the GPU that they are for: {target.name} needs {target.what}, this machine "
            f"has {here or 'no GPU'}; export there, or build ahead of time for one of TensorRT-RTX's targets"
        )


def build_engine(graph: Path, target: Target, part: Part, path: Path) -> float:
    """Write the engine of a part for one target, from the cache if it was built before.

    The network is strongly typed: precision is what the graph says, in its tensors or its Q/DQ nodes.

    Args:
        graph: ONNX graph of the part.
        target: what it is for.
        part: its axes are the optimization profile.
        path: where to write.

    Returns:
        Seconds that the build took; 0 from the cache.

    Raises:
        ExportError: The graph cannot be parsed, or the target cannot run it; the message is the library's.
    """
    start = time.perf_counter()
    inputs = (graph.read_bytes(), target.name, library_version(target), repr(dict(part.inputs)))
    engine, was_there = cached(lambda: _build(graph, target, part), *inputs)
    with replacing_file(path) as temporary:
        temporary.write_bytes(engine)
    return 0.0 if was_there else time.perf_counter() - start


def _build(graph: Path, target: Target, part: Part) -> bytes:
    trt = _library(target)
    name = TITLES[target.runtime]
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ExportError(f"{name} cannot read the graph for {target.name}: {errors}")
    config = builder.create_builder_config()
    if target.runtime == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.capability.upper()), 0)
    profile = builder.create_optimization_profile()
    for input_name, axes in part.inputs.items():
        corners = [tuple(getattr(axis, corner) for axis in axes) for corner in ("min", "opt", "max")]
        profile.set_shape(input_name, *corners)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"{name} cannot build the engine for {target.name}: {log.last_error or 'no reason given'}")
    return bytes(engine)


def _strongly_typed(trt: Any) -> int:
    """Flags of a network whose precision is that of its tensors; TensorRT-RTX knows no other."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0


def _library(target: Target) -> Any:
    try:
        return import_module(TENSORRT_MODULES[target.runtime])
    except ImportError:
        raise ExportError(
            f"{target.runtime} is not installed, {target.name} needs it: {INSTALL[target.runtime]}"
        ) from None


class _Log:
    """Keeps the last error that the library reports, since its calls return only None."""

    def __init__(self, trt: Any) -> None:
        self.last_error = ""
        log = self

        class Logger(trt.ILogger):  # type: ignore[misc]  # the library has no types
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    log.last_error = message

        self.logger = Logger()
