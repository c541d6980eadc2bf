"""Fast, exact region-proposal ops for two-stage detectors, and a thin Faster R-CNN made of them."""

from frcnn_fast import ops
from frcnn_fast.ops import use_backend
from frcnn_fast.patch import patch_torchvision

__version__ = "0.1.0"
__all__ = ["__version__", "ops", "patch_torchvision", "use_backend"]
