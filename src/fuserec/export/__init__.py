"""Checkpoint to served bundle: ONNX, quantization, engines, item index, manifest."""

from fuserec.export.config import PRECISIONS, TARGETS, ExportConfig
from fuserec.export.exporter import export_checkpoint

__all__ = ["PRECISIONS", "TARGETS", "ExportConfig", "export_checkpoint"]
