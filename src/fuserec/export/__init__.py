"""Checkpoint to served bundle: ONNX, quantization, engines, the quality gate, item index, manifest."""

from fuserec.export.config import ExportConfig, Gate
from fuserec.export.exporter import export_checkpoint
from fuserec.export.targets import AHEAD_OF_TIME, PRECISIONS, TARGETS

__all__ = ["AHEAD_OF_TIME", "PRECISIONS", "TARGETS", "ExportConfig", "Gate", "export_checkpoint"]
