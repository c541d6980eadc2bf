"""Fast, exact region-proposal ops for two-stage detectors, and a thin Faster R-CNN made of them."""

from typing import TYPE_CHECKING, Any

from frcnn_fast import _extension, ops
from frcnn_fast._extension import cmake_prefix
from frcnn_fast.mmcv import stand_in_for_mmcv
from frcnn_fast.ops import use_backend
from frcnn_fast.patch import patch_detectron2, patch_mmdet, patch_supervision, patch_torchvision

if TYPE_CHECKING:
    from frcnn_fast.inference import Detector

__version__ = "0.1.0"
__all__ = [
    "Detector",
    "__version__",
    "cmake_prefix",
    "ops",
    "patch_detectron2",
    "patch_mmdet",
    "patch_supervision",
    "patch_torchvision",
    "stand_in_for_mmcv",
    "use_backend",
]

_extension.check_version(__version__, getattr(_extension._C, "__version__", None))


def __getattr__(name: str) -> Any:
    # The detector's modules are not needed by whoever wants the ops alone.
    if name == "Detector":
        from frcnn_fast.inference import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
