"""Detectors as files for other programs: ONNX, and torch.export's pt2. See docs/export.md."""

from frcnn_fast.export.command import main
from frcnn_fast.export.detector import Agreement, Inference, export_onnx, export_pt2
from frcnn_fast.export.translations import onnx_ops

__all__ = ["Agreement", "Inference", "export_onnx", "export_pt2", "main", "onnx_ops"]
