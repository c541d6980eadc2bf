"""The oracle: every op in plain NumPy, sharing no code with the kernels.

Functions take and return NumPy arrays, have the names and arguments of the ops' schemas (frcnn_fast/ops), and compute
in the precision of the float arrays they are given (float32 or float64): every operation rounded by itself, in the one
order that all backends follow. Padding is 0 for floats and -1 for integers. Anchors are explicit: [A, 4] or [B, A, 4].
"""

from .anchor_decode import (
    decode,
    decode_clip,
    decode_clip_backward,
    encode,
    explicit_anchors,
    generate_anchors,
    grid_anchors,
)
from .anchor_gather import anchor_table, gather_anchors, gather_anchors_backward
from .anchor_target import assign_anchors, rpn_targets, sample_anchors, sample_rois
from .arithmetic import atan_, exp_, log_
from .detections import detections, softmax
from .focal_loss import (
    class_focal_loss,
    class_focal_loss_backward,
    sigmoid_focal_loss,
    sigmoid_focal_loss_backward,
)
from .iou_kinds import iou_loss, iou_loss_backward, pairwise_iou, pairwise_iou_backward
from .nms import batched_nms, box_iou, box_iou_backward, nms, nms_padded, soft_nms
from .proposals import rpn_proposals
from .prroi_pool import prroi_pool, prroi_pool_backward, prroi_pool_rois_backward
from .rng import philox4x32, sample_keys
from .roi_pool import (
    multiscale_roi_align,
    multiscale_roi_align_backward,
    roi_align,
    roi_align_backward,
    roi_align_max,
    roi_align_max_backward,
    roi_align_rois_backward,
    roi_levels,
    roi_pool,
    roi_pool_backward,
    rois_of,
)
from .top_n import ranked, top_n

__all__ = [
    "anchor_table",
    "assign_anchors",
    "atan_",
    "batched_nms",
    "box_iou",
    "box_iou_backward",
    "class_focal_loss",
    "class_focal_loss_backward",
    "decode",
    "decode_clip",
    "decode_clip_backward",
    "detections",
    "encode",
    "exp_",
    "explicit_anchors",
    "gather_anchors",
    "gather_anchors_backward",
    "generate_anchors",
    "grid_anchors",
    "iou_loss",
    "iou_loss_backward",
    "log_",
    "multiscale_roi_align",
    "multiscale_roi_align_backward",
    "nms",
    "nms_padded",
    "pairwise_iou",
    "pairwise_iou_backward",
    "philox4x32",
    "prroi_pool",
    "prroi_pool_backward",
    "prroi_pool_rois_backward",
    "ranked",
    "roi_align",
    "roi_align_backward",
    "roi_align_max",
    "roi_align_max_backward",
    "roi_align_rois_backward",
    "roi_levels",
    "roi_pool",
    "roi_pool_backward",
    "rois_of",
    "rpn_proposals",
    "rpn_targets",
    "sample_anchors",
    "sample_keys",
    "sample_rois",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_backward",
    "soft_nms",
    "softmax",
    "top_n",
]
