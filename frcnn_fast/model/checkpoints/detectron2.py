"""detectron2's Faster R-CNN: ResNet with FPN, or C4."""

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
    resnet_depth,
    with_background_boxes,
)

MARK = "proposal_generator.rpn_head.objectness_logits.weight"

_NORM = r"norm\.(weight|bias|running_mean|running_var)"
_IN_A_STAGE = (
    # (stage of the file, where it lies here); the number of a stage is one more than that of torchvision's layer.
    *((rf"backbone\.(?:bottom_up\.)?res{n + 1}\.", rf"backbone.{{body}}layer{n}.") for n in (1, 2, 3, 4)),
    (r"roi_heads\.res5\.", "roi_head.body.layer4."),
)


def _rules(fpn: bool) -> list[tuple[str, str | None]]:
    body = "body." if fpn else ""
    rules: list[tuple[str, str | None]] = [
        (r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\..*", None),
        (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", f"backbone.{body}conv1.weight"),
        (rf"backbone\.(?:bottom_up\.)?stem\.conv1\.{_NORM}", rf"backbone.{body}bn1.\1"),
        *((rf"backbone\.fpn_lateral{n + 2}\.(\w+)", rf"backbone.fpn.inner_blocks.{n}.0.\1") for n in range(4)),
        *((rf"backbone\.fpn_output{n + 2}\.(\w+)", rf"backbone.fpn.layer_blocks.{n}.0.\1") for n in range(4)),
        (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
        (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.convs.\1.\2"),
        (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.cls_logits.\1"),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.bbox_pred.\1"),
        (r"roi_heads\.box_head\.fc1\.(\w+)", r"roi_head.body.fc6.\1"),
        (r"roi_heads\.box_head\.fc2\.(\w+)", r"roi_head.body.fc7.\1"),
        (r"roi_heads\.box_predictor\.(.*)", r"roi_head.\1"),
    ]
    for stage, place in _IN_A_STAGE:
        at = place.format(body=body)
        rules += [
            (rf"{stage}(\d+)\.shortcut\.weight", rf"{at}\1.downsample.0.weight"),
            (rf"{stage}(\d+)\.shortcut\.{_NORM}", rf"{at}\1.downsample.1.\2"),
            (rf"{stage}(\d+)\.(conv\d)\.weight", rf"{at}\1.\2.weight"),
            (rf"{stage}(\d+)\.conv(\d)\.{_NORM}", rf"{at}\1.bn\2.\3"),
        ]
    return rules


def translate(tensors: Mapping[str, Tensor], norm_eps: float | None) -> Foreign:
    """Settings are those of its R_50_FPN and R_50_C4 configurations, with the MSRA weights they start from."""
    fpn = "backbone.fpn_lateral2.weight" in tensors
    found, strange = renamed(tensors, _rules(fpn))
    for name in [name for name in found if ".bn" in name or ".downsample.1." in name]:
        stem, _, part = name.rpartition(".")
        if part == "weight":  # its first files have no statistics, which are then in scale and shift
            found.setdefault(f"{stem}.running_mean", torch.zeros_like(found[name]))
            found.setdefault(f"{stem}.running_var", torch.ones_like(found[name]))
    found["roi_head.cls_score.weight"] = background_first(found["roi_head.cls_score.weight"])
    found["roi_head.cls_score.bias"] = background_first(found["roi_head.cls_score.bias"])
    agnostic = len(found["roi_head.bbox_pred.bias"]) == 4
    for part in ("weight", "bias"):
        found[f"roi_head.bbox_pred.{part}"] = with_background_boxes(found[f"roi_head.bbox_pred.{part}"])
    depth = resnet_depth(found, "backbone.body." if fpn else "backbone.")
    settings = {
        **region_settings(found, fpn, agnostic),
        "stride_in_1x1": depth >= 50,
        "preprocess": "msra",
    }
    return Foreign(settings, found, strange, COCO_80)
