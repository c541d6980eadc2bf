"""What serves each function of mmcv's compiled half, and who needs what nothing serves."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch

from frcnn_fast.mmcv import attention, batch_norm, boxes, convolutions, deform_roi_pool, losses, rois, upsampling


class Served(NamedTuple):
    function: Callable[..., Any]
    by: str  # what computes it: our kernels, torch's operators, torchvision's, mmcv's own Python


KERNELS, TORCH, TORCHVISION, MMCV = "frcnn_fast", "torch", "torchvision", "mmcv"


def get_compiler_version() -> str:
    return "none: frcnn_fast stands in for mmcv's compiled functions"


def get_compiling_cuda_version() -> str:
    return "not available"


# mmcv's names are the functions' own.
_BY: tuple[tuple[str, tuple[Callable[..., Any], ...]], ...] = (
    (KERNELS, (boxes.nms, boxes.softnms, boxes.nms_match, boxes.bbox_overlaps)),
    (KERNELS, (rois.roi_align_forward, rois.roi_align_backward, rois.roi_pool_forward, rois.roi_pool_backward)),
    (KERNELS, (losses.sigmoid_focal_loss_forward, losses.sigmoid_focal_loss_backward)),
    (TORCH, (deform_roi_pool.deform_roi_pool_forward, deform_roi_pool.deform_roi_pool_backward)),
    (TORCH, (losses.softmax_focal_loss_forward, losses.softmax_focal_loss_backward)),
    (TORCH, (convolutions.masked_im2col_forward, convolutions.masked_col2im_forward)),
    (TORCH, (upsampling.carafe_forward, upsampling.carafe_backward)),
    (TORCH, (upsampling.carafe_naive_forward, upsampling.carafe_naive_backward)),
    (TORCH, (batch_norm.sync_bn_forward_mean, batch_norm.sync_bn_forward_var, batch_norm.sync_bn_forward_output)),
    (TORCH, (batch_norm.sync_bn_backward_param, batch_norm.sync_bn_backward_data)),
    (
        TORCHVISION,
        (
            convolutions.deform_conv_forward,
            convolutions.deform_conv_backward_input,
            convolutions.deform_conv_backward_parameters,
            convolutions.modulated_deform_conv_forward,
            convolutions.modulated_deform_conv_backward,
        ),
    ),
    (MMCV, (attention.ms_deform_attn_forward, attention.ms_deform_attn_backward)),
    (TORCH, (get_compiler_version, get_compiling_cuda_version)),
)

# C++ code records no gradients, so neither does what stands in for it.
SERVED = {f.__name__: Served(torch.no_grad()(f), by) for by, functions in _BY for f in functions}

# By the beginning of the name. No model of mmdetection 3 needs any of these.
NEEDED_BY = {
    "active_rotated_filter": "mmrotate's S2A-Net and ReDet",
    "assign_score_withk": "mmdetection3d's PAConv",
    "ball_query": "mmdetection3d's PointNet++ (VoteNet, 3DSSD, PointRCNN)",
    "bezier_align": "mmocr's ABCNet",
    "bias_act": "mmagic's StyleGAN3",
    "border_align": "BorderDet",
    "box_iou_quadri": "mmrotate, for quadrilaterals",
    "box_iou_rotated": "mmrotate",
    "chamfer_distance": "mmdetection3d's H3DNet and SASSD",
    "contour_expand": "mmocr's PSENet",
    "convex_": "mmrotate's CFA, SASM and oriented RepPoints",
    "correlation": "mmflow",
    "diff_iou_rotated": "mmrotate and mmdetection3d, for rotated IoU losses",
    "dynamic_": "mmdetection3d's dynamic voxels",
    "filtered_lrelu": "mmagic's StyleGAN3",
    "furthest_point_sampling": "mmdetection3d's PointNet++ (VoteNet, 3DSSD, PointRCNN)",
    "fused_bias_leakyrelu": "mmagic's StyleGAN2",
    "fused_indice_conv": "mmdetection3d's sparse convolutions",
    "gather_points": "mmdetection3d's PointNet++ (VoteNet, 3DSSD, PointRCNN)",
    "get_indice_pairs": "mmdetection3d's sparse convolutions",
    "group_points": "mmdetection3d's PointNet++ (VoteNet, 3DSSD, PointRCNN)",
    "hard_voxelize": "mmdetection3d's voxels (SECOND, PointPillars, CenterPoint)",
    "indice_": "mmdetection3d's sparse convolutions",
    "iou3d": "mmdetection3d, for NMS and overlaps seen from above",
    "knn": "mmdetection3d's PAConv and DGCNN",
    "min_area_polygons": "mmrotate's oriented RepPoints",
    "nms_quadri": "mmrotate, for quadrilaterals",
    "nms_rotated": "mmrotate",
    "pixel_group": "mmocr's PANet",
    "points_in_boxes": "mmdetection3d",
    "points_in_polygons": "mmrotate",
    "prroi_pool": "trackers with precise RoI pooling",
    "psamask": "mmsegmentation's PSANet",
    "riroi_align_rotated": "mmrotate's ReDet",
    "roi_align_rotated": "mmrotate's two-stage detectors",
    "roiaware_pool3d": "mmdetection3d's Part-A2",
    "roipoint_pool3d": "mmdetection3d's PointRCNN",
    "rotated_feature_align": "mmrotate's R3Det",
    "stack_": "mmdetection3d's PV-RCNN",
    "three_": "mmdetection3d's PointNet++ (VoteNet, PointRCNN)",
    "tin_shift": "mmaction2's TIN",
    "upfirdn2d": "mmagic's StyleGANs",
}


def fill(module: ModuleType) -> None:
    """Makes the module `mmcv._ext`: the functions that are served, and any other name as one that raises."""
    vars(module).update({name: served.function for name, served in SERVED.items()})
    vars(module)["__getattr__"] = _unserved


def _unserved(name: str) -> Callable[..., NoReturn]:
    """mmcv asks for more than a hundred names when it is imported; who calls one that nobody serves is told so."""
    if name.startswith("__"):
        raise AttributeError(f"mmcv._ext, for which frcnn_fast stands in, has no {name}")
    who = [needed for beginning, needed in NEEDED_BY.items() if name.startswith(beginning)]

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv._ext.{name}: mmcv's compiled half is not installed, and frcnn_fast, which stands in for it, has no "
            f"such function{f' (needed by {who[0]})' if who else ''}; it takes a build of mmcv with its compiled half"
        )

    refuse.__name__ = name
    return refuse
