"""Our steps under other people's detectors, without a change of their code: one module a library."""

from frcnn_fast.patch.core import Patch
from frcnn_fast.patch.detectron2 import patch_detectron2
from frcnn_fast.patch.mmdet import patch_mmdet
from frcnn_fast.patch.supervision import patch_supervision
from frcnn_fast.patch.torchvision import patch_torchvision

__all__ = ["Patch", "patch_detectron2", "patch_mmdet", "patch_supervision", "patch_torchvision"]
