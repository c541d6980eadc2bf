"""Faster R-CNN, composed of `frcnn_fast.ops`."""

from frcnn_fast.model.backbones import (
    VGG16,
    ZF,
    MobileNetV3,
    MobileNetV3FPN,
    ResNetC4,
    ResNetFPN,
    SmallBackbone,
    SqueezeNet,
    TimmFPN,
    build_backbone,
)
from frcnn_fast.model.build import build_detector, load_detector, load_pretrained, save_detector
from frcnn_fast.model.checkpoints import from_checkpoint
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.detector import Detections, FasterRCNN
from frcnn_fast.model.presets import config_for, preset
from frcnn_fast.model.protocol import Backbone
from frcnn_fast.model.start import Started, config_of, start_from

__all__ = [
    "VGG16",
    "ZF",
    "Backbone",
    "Detections",
    "DetectorConfig",
    "FasterRCNN",
    "MobileNetV3",
    "MobileNetV3FPN",
    "ResNetC4",
    "ResNetFPN",
    "SmallBackbone",
    "SqueezeNet",
    "Started",
    "TimmFPN",
    "build_backbone",
    "build_detector",
    "config_for",
    "config_of",
    "from_checkpoint",
    "load_detector",
    "load_pretrained",
    "preset",
    "save_detector",
    "start_from",
]
