"""The ops: torchvision's names and arguments where those exist, fixed shapes with counts everywhere else."""

from frcnn_fast.ops._backends import use_backend
from frcnn_fast.ops.anchor_decode import decode_clip, encode, generate_anchors, grid_anchors
from frcnn_fast.ops.anchor_gather import gather_anchors
from frcnn_fast.ops.anchors import AnchorGrids
from frcnn_fast.ops.detections import detections
from frcnn_fast.ops.focal_loss import sigmoid_focal_loss
from frcnn_fast.ops.iou_kinds import (
    complete_box_iou,
    complete_box_iou_loss,
    distance_box_iou,
    distance_box_iou_loss,
    generalized_box_iou,
    generalized_box_iou_loss,
)
from frcnn_fast.ops.nms import batched_nms, box_iou, nms, nms_padded, soft_nms
from frcnn_fast.ops.proposals import rpn_proposals
from frcnn_fast.ops.prroi_pool import prroi_pool
from frcnn_fast.ops.results import (
    AnchorLabels,
    AnchorSamples,
    DecodedBoxes,
    Detections,
    PaddedKeep,
    Proposals,
    RoiTargets,
    RpnTargets,
    SoftKeep,
    TopN,
)
from frcnn_fast.ops.roi_modules import MultiScaleRoIAlign, PrRoIPool, RoIAlign, RoIPool
from frcnn_fast.ops.roi_pool import roi_align, roi_pool
from frcnn_fast.ops.roi_pyramid import multiscale_roi_align
from frcnn_fast.ops.roi_targets import sample_rois
from frcnn_fast.ops.rpn_targets import assign_anchors, rpn_targets, sample_anchors
from frcnn_fast.ops.top_n import top_n

__all__ = [
    "AnchorGrids",
    "AnchorLabels",
    "AnchorSamples",
    "DecodedBoxes",
    "Detections",
    "MultiScaleRoIAlign",
    "PaddedKeep",
    "PrRoIPool",
    "Proposals",
    "RoIAlign",
    "RoIPool",
    "RoiTargets",
    "RpnTargets",
    "SoftKeep",
    "TopN",
    "assign_anchors",
    "batched_nms",
    "box_iou",
    "complete_box_iou",
    "complete_box_iou_loss",
    "decode_clip",
    "detections",
    "distance_box_iou",
    "distance_box_iou_loss",
    "encode",
    "gather_anchors",
    "generalized_box_iou",
    "generalized_box_iou_loss",
    "generate_anchors",
    "grid_anchors",
    "multiscale_roi_align",
    "nms",
    "nms_padded",
    "prroi_pool",
    "roi_align",
    "roi_pool",
    "rpn_proposals",
    "rpn_targets",
    "sample_anchors",
    "sample_rois",
    "sigmoid_focal_loss",
    "soft_nms",
    "top_n",
    "use_backend",
]
