"""ONNX graph to TensorRT-RTX engine, ahead of time: the GPU it is for need not be here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuserec.errors import ExportError
from fuserec.export.parts import Part


def library_version() -> str:
    """Return the version of TensorRT-RTX; an engine runs under the version that built it and no other."""
    return str(_library().__version__)


def build_engine(graph: Path, target: str, part: Part) -> bytes:
    """Build the engine of a part for one target.

    The network is strongly typed: precision is what the graph says, in its tensors or its Q/DQ nodes.

    Args:
        graph: ONNX graph of the part.
        target: Compute capability, such as `sm89`.
        part: Its axes are the optimization profile.

    Returns:
        The serialized engine.

    Raises:
        ExportError: The graph cannot be parsed, or the target cannot run it; the message is TensorRT-RTX's.
    """
    trt = _library()
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ExportError(f"TensorRT-RTX cannot read the graph for {target}: {errors}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    profile = builder.create_optimization_profile()
    for name, axes in part.inputs.items():
        corners = [tuple(getattr(axis, corner) for axis in axes) for corner in ("min", "opt", "max")]
        profile.set_shape(name, *corners)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"TensorRT-RTX cannot build the engine for {target}: {log.last_error or 'no reason given'}")
    return bytes(engine)


def _library() -> Any:
    try:
        import tensorrt_rtx
    except ImportError:
        raise ExportError("TensorRT-RTX is not installed: pip install 'fuserec[export]'") from None
    return tensorrt_rtx


class _Log:
    """Keeps the last error that TensorRT-RTX reports, since its calls return only None."""

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
