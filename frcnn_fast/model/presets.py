"""Settings that suit a backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from frcnn_fast.model.backbones import BACKBONES, DEPTHS, backbone_name, backbone_options, build_backbone, is_known
from frcnn_fast.model.config import DetectorConfig
from frcnn_fast.model.protocol import backbone_shape


def preset(backbone: str, **changes: Any) -> DetectorConfig:
    """The settings that suit a known backbone, with `changes` on top; an unknown one gets the paper's settings."""
    if backbone in BACKBONES or not is_known(backbone):
        return DetectorConfig(**{"backbone": backbone, **_PRESETS.get(backbone, {}), **changes})
    with torch.device("meta"):  # what a timm model looks like, only the model knows
        built = build_backbone(backbone, **changes)
    return DetectorConfig(**{**config_for(built).to_dict(), **changes})


def config_for(backbone: nn.Module) -> DetectorConfig:
    """Settings that suit this backbone: its preset where it is one of ours, else what detectors are trained with today.

    There, anchors span 4 to 32 strides where there is one map; in a pyramid every level has one size, 8 strides.
    """
    name, options = backbone_name(backbone), backbone_options(backbone)
    if name in BACKBONES:
        return preset(name, **options)
    strides = backbone_shape(backbone).rpn_strides
    scales = (4, 8, 16, 32) if len(strides) == 1 else (8,)
    sizes = tuple(tuple(float(scale * stride) for scale in scales) for stride in strides)
    return DetectorConfig(backbone=name, anchor_sizes=sizes, **options, **_TODAY)


# With or without published weights: what detectors on ResNets are trained with today.
_TODAY: dict[str, Any] = {
    "preprocess": "torch",
    "rpn_channels": 256,
    "ignore_straddling": False,
    "n_reg": 256.0,
    "rpn_lambda": 1.0,
    "proposals_train": (2000, 1000),
    "proposals_test": (1000, 300),
    "filter_order": "after_top_n",
    "min_size": 0.0,
    "pooling": "roi_align",
    "head_channels": 1024,
    "dropout": 0.0,
    "roi_beta": 1 / 9,
    "detection_iou": 0.5,
}
# At the size of COCO's images.
_LARGE: dict[str, Any] = {**_TODAY, "shorter": 800, "longer": 1333}
_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_FPN: dict[str, Any] = {
    **_LARGE,
    "anchor_sizes": tuple((size,) for size in _SIZES),
    "proposals_test": (1000, 1000),
    "roi_batch_size": 512,
}
# layer4 halves the regions' 14 x 14 cells.
_C4: dict[str, Any] = {
    **_LARGE,
    "anchor_sizes": (_SIZES,),
    "proposals_train": (12000, 2000),
    "proposals_test": (6000, 300),
    "pool_size": 14,
}

_PRESETS: dict[str, dict[str, Any]] = {
    # The paper's, as is VGG-16's.
    "zf": {"rpn_channels": 256, "pool_size": 6},
    **{f"resnet{depth}_fpn": _FPN for depth in DEPTHS},
    **{f"resnet{depth}_c4": {**_C4, "rpn_channels": 1024 if depth >= 50 else 256} for depth in DEPTHS},
    "mobilenet_v3_large_fpn": {**_LARGE, "anchor_sizes": (_SIZES,) * 3, "proposals_test": (1000, 1000)},
    "mobilenet_v3_large": {**_TODAY, "shorter": 320, "longer": 640, "anchor_sizes": (_SIZES,)},
    # For images of a few hundred pixels with objects from 32 pixels up.
    "squeezenet1_0": {
        **_TODAY,
        "preprocess": "caffe",
        "rpn_channels": 512,
        "shorter": 320,
        "longer": 640,
        # On 0..255 the published weights give features of about 30. New layers on top of those make the first updates
        # so large that the backbone's features die: after twelve, 98 % of them are zero, 84 % before.
        "feature_scale": 1 / 32,
        "anchor_sizes": ((32.0, 64.0, 128.0, 256.0),),
        "proposals_train": (2000, 2000),
    },
    # For the embedded digits: 256x192 images, objects of 24 to 96 pixels, trained from nothing.
    "small": {
        "preprocess": "torch",
        "shorter": None,
        "longer": None,
        "anchor_sizes": ((18.0, 30.0), (48.0, 76.0)),
        "anchor_ratios": (1.3, 2.0),
        "rpn_channels": 64,
        "rpn_batch_size": 128,
        "ignore_straddling": False,
        "n_reg": 128.0,
        "rpn_lambda": 1.0,
        "proposals_train": (300, 64),
        "proposals_test": (300, 64),
        "filter_order": "after_top_n",
        "min_size": 0.0,
        "pooling": "roi_align",
        "sampling_ratio": 1,
        "head_channels": 256,
        "dropout": 0.0,
        "roi_batch_size": 48,
        "roi_beta": 1 / 9,
    },
}
