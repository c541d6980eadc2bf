"""The ops: torchvision's names and arguments where those exist, fixed shapes with counts everywhere else."""

from frcnn_fast.ops._operator import use_backend
from frcnn_fast.ops.nms import batched_nms, box_iou, nms, nms_padded
from frcnn_fast.ops.roi_modules import MultiScaleRoIAlign, RoIAlign, RoIPool
from frcnn_fast.ops.roi_pool import roi_align, roi_pool
from frcnn_fast.ops.roi_pyramid import multiscale_roi_align
from frcnn_fast.ops.top_n import top_n

__all__ = [
    "MultiScaleRoIAlign",
    "RoIAlign",
    "RoIPool",
    "batched_nms",
    "box_iou",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "roi_align",
    "roi_pool",
    "top_n",
    "use_backend",
]
