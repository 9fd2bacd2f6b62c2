"""Checkpoint to served bundle: ONNX, quantization, engines, the quality gate, item index, manifest."""

from typing import TYPE_CHECKING, Any

from fuserec.export.config import ExportConfig, Gate
from fuserec.export.targets import AHEAD_OF_TIME, PRECISIONS, TARGETS

if TYPE_CHECKING:
    from fuserec.export.exporter import export_checkpoint

__all__ = ["AHEAD_OF_TIME", "PRECISIONS", "TARGETS", "ExportConfig", "Gate", "export_checkpoint"]


def __getattr__(name: str) -> Any:
    # The exporter brings torch, which takes seconds; options, and the look at what is there, do without.
    if name == "export_checkpoint":
        from fuserec.export.exporter import export_checkpoint

        return export_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
