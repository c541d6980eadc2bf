"""Writes a detector with the backbone "small" as one file for detect.cpp: python export.py RUN MODEL.

The file is text, a line a setting ("number min_size 0"), a class ("class 7") or a tensor ("tensor fc7.bias 256"), up to
the line "end"; then the tensors' float32 elements in that order, little-endian. Batch normalisation is folded into the
convolutions before it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.data import Preprocess
from frcnn_fast.model import FasterRCNN, SmallBackbone, load_detector
from frcnn_fast.model.head import TwoLayerHead
from frcnn_fast.model.layers import scale_and_shift
from frcnn_fast.ops.anchor_decode import DELTA_CLAMP

# What detect.cpp does; another value of one of these would need other code there.
EXPECTED = {
    "preprocess": "torch",
    "shorter": None,
    "feature_scale": 1.0,
    "anchor_stride": "backbone",
    "rpn_convs": 1,
    "proposal_score_threshold": 0.0,
    "pooling": "roi_align",
    "pool_levels": None,
    "class_agnostic": False,
    "parts": "both",
}
COPIED = (
    "anchor_offset", "proposal_iou", "min_size", "pool_size", "sampling_ratio", "aligned", "canonical_scale",
    "canonical_level", "score_threshold", "detection_iou", "max_detections", "detection_min_size",
)  # fmt: skip


def numbers(detector: FasterRCNN) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The settings that detect.cpp reads, each with its values."""
    config, preprocess = detector.config, Preprocess(detector.config.preprocess)
    yield from ((name, (getattr(config, name),)) for name in COPIED)
    yield "proposals", config.proposals_test
    yield "filter_before_top_n", (config.filter_order == "before_top_n",)
    yield "box_weights", config.box_weights
    yield "delta_clamp", (DELTA_CLAMP,)
    yield "strides", detector.shape.rpn_strides
    yield "pixel_offset", tuple(preprocess._offset)
    yield "pixel_factor", tuple(preprocess._factor)


def tensors(detector: FasterRCNN) -> Iterator[tuple[str, Tensor]]:
    """The weights, each layer's as NAME.weight and NAME.bias."""
    backbone, rpn, head = detector.backbone, detector.rpn, detector.roi_head
    for part in ("fine", "coarse"):
        for i, (conv, norm, _) in enumerate(getattr(backbone, part)):
            scale, shift = scale_and_shift(norm)
            yield f"{part}.{i}.weight", conv.weight * scale[:, None, None, None]
            yield f"{part}.{i}.bias", shift
    plain: dict[str, Any] = {
        "lateral_fine": backbone.lateral_fine,
        "lateral_coarse": backbone.lateral_coarse,
        "rpn.conv": rpn.convs[0],
        "rpn.cls_logits": rpn.cls_logits,
        "rpn.bbox_pred": rpn.bbox_pred,
        "fc6": head.body.fc6,
        "fc7": head.body.fc7,
        "cls_score": head.cls_score,
        "bbox_pred": head.bbox_pred,
    }
    for name, layer in plain.items():
        yield f"{name}.weight", layer.weight
        yield f"{name}.bias", layer.bias
    for level in range(len(detector.shape.rpn_strides)):
        yield f"cell_anchors_{level}", getattr(rpn, f"cell_anchors_{level}")


@torch.no_grad()
def export(detector: FasterRCNN, path: str | os.PathLike[str]) -> None:
    """Writes the file; ValueError for a detector that detect.cpp does not know how to run."""
    settings = detector.config.to_dict()
    other = {name: settings[name] for name, value in EXPECTED.items() if settings[name] != value}
    backbone, body = detector.backbone, detector.roi_head.body
    if other or not isinstance(backbone, SmallBackbone) or not isinstance(body, TwoLayerHead):
        raise ValueError(
            f"detect.cpp runs the backbone 'small' with a head of two layers and {EXPECTED}; this detector has "
            f"{type(backbone).__name__}, {type(body).__name__} and {other or 'those settings'}"
        )
    named = dict(tensors(detector.eval()))
    lines = [f"class {name}" for name in detector.class_names]
    lines += [" ".join(["number", name, *(repr(float(v)) for v in values)]) for name, values in numbers(detector)]
    lines += [" ".join(["tensor", name, *map(str, tensor.shape)]) for name, tensor in named.items()]
    part = f"{os.fspath(path)}.part"
    with open(part, "wb") as file:
        file.write("\n".join([*lines, "end", ""]).encode())
        for tensor in named.values():
            file.write(tensor.float().contiguous().cpu().numpy().astype("<f4").tobytes())
    os.replace(part, path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    export(load_detector(sys.argv[1], device="cpu"), sys.argv[2])
