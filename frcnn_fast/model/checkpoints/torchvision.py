"""torchvision's fasterrcnn_resnet*_fpn, _v2 and fasterrcnn_mobilenet_v3_large_fpn."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from frcnn_fast.model.checkpoints.coco import COCO_91
from frcnn_fast.model.checkpoints.foreign import COMMON, PYRAMID, SIZES, Foreign, renamed, resnet_depth

MARK = "rpn.head.cls_logits.weight"

_RULES = (
    (r"(backbone\.fpn\.\w+_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),  # before version 0.13
    (r"(backbone\.(?:body|fpn)\..*)", r"\1"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),  # before version 0.13
    (r"rpn\.head\.conv\.(\d)\.0\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"rpn\.head\.((?:cls_logits|bbox_pred)\.\w+)", r"rpn.\1"),
    (r"roi_heads\.box_head\.(fc[67]\.\w+)", r"roi_head.body.\1"),
    (r"roi_heads\.box_head\.(\d\.[01]\.\w+)", r"roi_head.body.convs.\1"),
    (r"roi_heads\.box_head\.5\.(\w+)", r"roi_head.body.fc6.\1"),
    (r"roi_heads\.box_predictor\.(.*)", r"roi_head.\1"),
)


def translate(tensors: Mapping[str, Tensor], norm_eps: float | None) -> Foreign:
    """norm_eps: what its frozen normalisations add to the variances; None: 0 for COCO's weights as they were published,
    before torchvision added anything, else 1e-5."""
    mobile = "backbone.body.0.0.weight" in tensors
    convs = "roi_heads.box_head.0.0.weight" in tensors
    batch = "backbone.fpn.inner_blocks.0.1.weight" in tensors
    found, strange = renamed(tensors, _RULES)
    if not batch:
        for name in [name for name in found if re.fullmatch(r"backbone\..*num_batches_tracked", name)]:
            del found[name]
        as_published = "rpn.head.conv.weight" in tensors and len(found["roi_head.cls_score.weight"]) == len(COCO_91) + 1
        found = _with_eps(found, norm_eps if norm_eps is not None else 0.0 if as_published else 1e-5)
    settings = {
        **COMMON,
        **PYRAMID,
        "backbone": "mobilenet_v3_large_fpn" if mobile else f"resnet{resnet_depth(tensors, 'backbone.body.')}_fpn",
        "norm": "batch" if batch else "frozen",
        "preprocess": "torch",
        "resize": "torchvision",
        "anchor_convention": "torchvision",
        "anchor_stride": "image",
        "rpn_convs": sum(name.startswith("rpn.convs.") and name.endswith("weight") for name in found),
        "rpn_beta": 1 / 9,
        "proposals_train": (2000, 2000),
        "min_size": 1e-3,
        "sampling_ratio": 2,
        "aligned": False,
        "head": "conv" if convs else "fc",
        "roi_beta": 1 / 9,
        "detection_min_size": 1e-2,
    }
    if mobile:
        settings |= {"anchor_sizes": (SIZES,) * 3, "proposal_score_threshold": 0.05}
    return Foreign(settings, found, strange, COCO_91)


def _with_eps(tensors: dict[str, Tensor], eps: float, ours: float = 1e-5) -> dict[str, Tensor]:
    """Normalisations of the backbone that add `ours` to the variance, and scale as these do with `eps`."""
    found = dict(tensors)
    for name, variance in tensors.items():
        if name.startswith("backbone.") and name.endswith(".running_var") and eps != ours:
            weight = name.replace("running_var", "weight")
            factor = ((variance.double() + ours) / (variance.double() + eps)).sqrt()
            found[weight] = (tensors[weight].double() * factor).to(torch.float32)
    return found
