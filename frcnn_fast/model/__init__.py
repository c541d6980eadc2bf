"""Faster R-CNN, composed of `frcnn_fast.ops`."""

from frcnn_fast.model.backbones import VGG16, SmallBackbone, SqueezeNet, build_backbone
from frcnn_fast.model.build import build_detector, load_detector, load_pretrained, save_detector
from frcnn_fast.model.config import DetectorConfig, preset
from frcnn_fast.model.detector import Detections, FasterRCNN
from frcnn_fast.model.protocol import Backbone

__all__ = [
    "VGG16",
    "Backbone",
    "Detections",
    "DetectorConfig",
    "FasterRCNN",
    "SmallBackbone",
    "SqueezeNet",
    "build_backbone",
    "build_detector",
    "load_detector",
    "load_pretrained",
    "preset",
    "save_detector",
]
