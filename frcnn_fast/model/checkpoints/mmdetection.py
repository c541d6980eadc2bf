"""mmdetection's Faster R-CNN (versions 2 and 3): ResNet with FPN, or C4."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from frcnn_fast.model.checkpoints.coco import COCO_80
from frcnn_fast.model.checkpoints.foreign import (
    Foreign,
    background_first,
    region_settings,
    renamed,
    with_background_boxes,
)

MARK = "rpn_head.rpn_cls.weight"

_RATIOS = 3


def _rules(fpn: bool) -> list[tuple[str, str | None]]:
    return [
        (r".*\.num_batches_tracked", None),
        (r"backbone\.(.*)", r"backbone.body.\1" if fpn else r"backbone.\1"),
        (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"backbone.fpn.inner_blocks.\1.0.\2"),
        (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", r"backbone.fpn.layer_blocks.\1.0.\2"),
        (r"rpn_head\.rpn_conv\.(weight|bias)", r"rpn.convs.0.\1"),
        (r"rpn_head\.rpn_conv\.(\d)\.conv\.(weight|bias)", r"rpn.convs.\1.\2"),
        (r"rpn_head\.rpn_cls\.(\w+)", r"rpn.cls_logits.\1"),
        (r"rpn_head\.rpn_reg\.(\w+)", r"rpn.bbox_pred.\1"),
        (r"roi_head\.shared_head\.(layer4\..*)", r"roi_head.body.\1"),
        (r"roi_head\.bbox_head\.shared_fcs\.0\.(\w+)", r"roi_head.body.fc6.\1"),
        (r"roi_head\.bbox_head\.shared_fcs\.1\.(\w+)", r"roi_head.body.fc7.\1"),
        (r"roi_head\.bbox_head\.fc_cls\.(\w+)", r"roi_head.cls_score.\1"),
        (r"roi_head\.bbox_head\.fc_reg\.(\w+)", r"roi_head.bbox_pred.\1"),
    ]


def translate(tensors: Mapping[str, Tensor], norm_eps: float | None) -> Foreign:
    """Settings are those of its faster-rcnn_r50_fpn and faster-rcnn_r50-caffe-c4 configurations."""
    fpn = "neck.lateral_convs.0.conv.weight" in tensors
    found, strange = renamed(tensors, _rules(fpn))
    agnostic = len(found["roi_head.bbox_pred.bias"]) == 4
    for part in ("weight", "bias"):
        found[f"roi_head.cls_score.{part}"] = background_first(found[f"roi_head.cls_score.{part}"])
        found[f"roi_head.bbox_pred.{part}"] = with_background_boxes(found[f"roi_head.bbox_pred.{part}"])
        if not fpn:
            # Its anchors of a cell: all sizes of the first ratio first. Here: all ratios of the first size.
            for name, each in ((f"rpn.cls_logits.{part}", 1), (f"rpn.bbox_pred.{part}", 4)):
                found[name] = _sizes_first(found[name], each)
    settings = {
        **region_settings(found, fpn, agnostic),
        "stride_in_1x1": not fpn,
        "preprocess": "torch" if fpn else "msra",
    }
    return Foreign(settings, found, strange, COCO_80)


def _sizes_first(rows: Tensor, each: int) -> Tensor:
    """Rows (ratio, size, each) of a layer as (size, ratio, each)."""
    if len(rows) % (_RATIOS * each):
        raise ValueError(f"its RPN has {len(rows)} outputs a cell, expected a multiple of {_RATIOS * each}")
    return torch.movedim(rows.unflatten(0, (_RATIOS, -1, each)), 1, 0).flatten(0, 2).contiguous()
