"""A trained detector at work on images: `Detector`, and the `Result` of an image."""

from frcnn_fast.inference.detector import Detector
from frcnn_fast.inference.result import Result

__all__ = ["Detector", "Result"]
