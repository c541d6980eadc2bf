"""What the translations of other libraries' checkpoints share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast.model.backbones import DEPTHS


@dataclasses.dataclass
class Foreign:
    """A detector of another library, in this library's terms."""

    settings: dict[str, Any]  # for DetectorConfig
    tensors: dict[str, Tensor]  # by this library's names
    left_out: list[str]  # names of the file that have no place here
    coco: Sequence[str]  # the names that its classes have where it was trained on COCO

    @property
    def classes(self) -> list[str]:
        """COCO's names where it has as many classes, else numbers."""
        number = len(self.tensors["roi_head.cls_score.bias"]) - 1
        return list(self.coco) if number == len(self.coco) else [str(label) for label in range(1, number + 1)]


def renamed(
    tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str | None]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by the names that the rules make of theirs, and the names for which there is no rule.

    A rule is a pattern of the whole name and the new name, or None for a tensor that says nothing.
    """
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    found, strange = {}, []
    for name, tensor in tensors.items():
        for pattern, new in compiled:
            match = pattern.fullmatch(name)
            if match:
                if new is not None:
                    found[match.expand(new)] = tensor
                break
        else:
            strange.append(name)
    return found, strange


def resnet_depth(names: Iterable[str], prefix: str) -> int:
    """The depth of the ResNet whose tensors have torchvision's names behind `prefix`.

    Raises:
        ValueError: it is none that this library has.
    """
    matches = [re.match(re.escape(prefix) + r"layer([123])\.(\d+)\.conv(\d)", name) for name in names]
    blocks = {match.groups() for match in matches if match}
    counts = tuple(len({block for layer, block, _ in blocks if layer == number}) for number in "123")
    bottleneck = any(conv == "3" for _, _, conv in blocks)
    for depth, (expected, kind) in DEPTHS.items():
        if (expected[:3], kind) == (counts, bottleneck):
            return depth
    raise ValueError(
        f"its ResNet has {counts} blocks of {3 if bottleneck else 2} convolutions in layer1 to layer3, expected a "
        f"ResNet-{', '.join(map(str, DEPTHS))}"
    )


def background_first(scores: Tensor) -> Tensor:
    """Rows of a class layer, of which the last is the background, in this library's order."""
    return torch.roll(scores, 1, 0)


def with_background_boxes(deltas: Tensor) -> Tensor:
    """Rows of a box layer, four a class, with four of zero for the background; four in all serve every class."""
    return deltas if len(deltas) == 4 else torch.cat([deltas.new_zeros(4, *deltas.shape[1:]), deltas])


# What the three libraries agree on.
COMMON: dict[str, Any] = {
    "shorter": 800,
    "longer": 1333,
    "ignore_straddling": False,
    "n_reg": 256.0,
    "rpn_lambda": 1.0,
    "filter_order": "after_top_n",
    "pooling": "roi_align",
    "dropout": 0.0,
    "roi_batch_size": 512,
    "head_channels": 1024,
    "score_threshold": 0.05,
    "detection_iou": 0.5,
    "max_detections": 100,
}
SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
PYRAMID: dict[str, Any] = {
    "anchor_sizes": tuple((size,) for size in SIZES),
    "rpn_channels": 256,
    "proposals_test": (1000, 1000),
}


def region_settings(found: Mapping[str, Tensor], fpn: bool, agnostic: bool) -> dict[str, Any]:
    """What detectron2's and mmdetection's detectors have in common, with a pyramid (fpn) or C4."""
    depth = resnet_depth(found, "backbone.body." if fpn else "backbone.")
    settings = {
        **COMMON,
        "backbone": f"resnet{depth}_{'fpn' if fpn else 'c4'}",
        "anchor_convention": "detectron2",
        "rpn_convs": sum(name.startswith("rpn.convs.") and name.endswith("weight") for name in found),
        "rpn_beta": 0.0,
        "min_size": 1e-6,
        "sampling_ratio": 0,
        "aligned": True,
        "class_agnostic": agnostic,
        "roi_beta": 0.0,
    }
    if fpn:
        return {**settings, **PYRAMID, "proposals_train": (2000, 1000), "head": "fc"}
    return {
        **settings,
        "anchor_sizes": (SIZES,),
        "rpn_channels": found["rpn.convs.0.weight"].shape[0],
        "proposals_train": (12000, 2000),
        "proposals_test": (6000, 1000),
        "pool_size": 14,
        "head": "own",
    }
