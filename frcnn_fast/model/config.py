"""The detector's settings: one plain dataclass that travels in the checkpoint as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from frcnn_fast._options import check_choices, option
from frcnn_fast._settings import check_settings
from frcnn_fast.model.backbones import BACKBONES
from frcnn_fast.model.protocol import backbone_shape


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Everything but the weights that is needed to rebuild a detector. The defaults are the paper's (VGG-16).

    Sizes are in pixels of the resized image, except `min_size`, which is in pixels of the original one.
    """

    backbone: str = option("vgg16", "vgg16, squeezenet1_0 or small")
    preprocess: str = option(
        "caffe",
        "scaling of the input: caffe (BGR 0..255 minus the mean) or torch (RGB 0..1, mean and deviation)",
        ("caffe", "torch"),
    )
    shorter: int | None = option(600, "resize the shorter side to this many pixels")
    longer: int | None = option(1000, "but the longer side to at most this many")
    feature_scale: float = option(1.0, "factor of the backbone's maps, for weights whose features are far from 1")

    anchor_sizes: tuple[tuple[float, ...], ...] = option(
        ((128.0, 256.0, 512.0),), "anchor sizes in pixels, one comma-separated list for each feature level"
    )
    anchor_ratios: tuple[float, ...] = option((0.5, 1.0, 2.0), "height / width of the anchors")
    anchor_convention: str = option("torchvision", "how they are rounded", ("torchvision", "detectron2"))
    anchor_offset: float = option(0.0, "place of an anchor in its cell, in strides")

    rpn_channels: int = option(512, "channels of the proposal network's 3x3 convolution")
    rpn_batch_size: int = option(256, "anchors sampled in each image")
    rpn_positive_fraction: float = option(0.5, "share of them that may be positive")
    rpn_positive_iou: float = option(0.7, "an anchor is positive from this overlap with an object")
    rpn_negative_iou: float = option(0.3, "and negative below this one with every object")
    ignore_straddling: bool = option(True, "anchors across the border take no part in training")
    n_cls: float | None = option(None, "divisor of the objectness loss of an image (default: the anchors sampled)")
    n_reg: float | None = option(None, "divisor of its box loss (default: the number of anchor locations)")
    rpn_lambda: float = option(10.0, "weight of the proposal network's box loss")
    rpn_beta: float = option(1 / 9, "where its smooth L1 turns linear")

    proposals_train: tuple[int, int] = option((12000, 2000), "proposals before and after NMS in training")
    proposals_test: tuple[int, int] = option((6000, 300), "and at test")
    proposal_iou: float = option(0.7, "overlap above which NMS drops a proposal")
    filter_order: str = option("before_top_n", "when small proposals are dropped", ("before_top_n", "after_top_n"))
    min_size: float = option(16.0, "smallest side of a proposal in pixels of the original image")

    parts: str = option(
        "both",
        "which networks are trained and so of use: both, rpn or roi_head (set by --scheme)",
        ("both", "rpn", "roi_head"),
    )
    pooling: str = option("roi_pool", "region pooling; several levels need roi_align", ("roi_pool", "roi_align"))
    pool_size: int = option(7, "its output is this many cells high and wide")
    sampling_ratio: int = option(2, "samples of roi_align in a cell, along each axis")
    aligned: bool = option(False, "shift of roi_align by half a pixel")
    canonical_scale: float = option(224.0, "a region of this size belongs to canonical_level")
    canonical_level: int = option(4, "level of the pyramid, log2 of its stride")
    head_channels: int = option(4096, "width of the head's two layers; at 4096 vgg16 has its own")
    dropout: float = option(0.5, "dropout after each of them")
    class_agnostic: bool = option(False, "one box for all classes of a region")
    roi_batch_size: int = option(128, "regions sampled in each image")
    roi_positive_fraction: float = option(0.25, "share of them that may be positive")
    roi_positive_iou: float = option(0.5, "a region is positive from this overlap with an object")
    roi_negative_iou_high: float = option(0.5, "and background below this one")
    roi_negative_iou_low: float = option(0.0, "but from this one up")
    roi_beta: float = option(1.0, "where the head's smooth L1 turns linear")

    score_threshold: float = option(0.05, "detections score more than this")
    detection_iou: float = option(0.3, "overlap above which NMS drops a detection of the same class")
    max_detections: int = option(100, "detections in an image at most")

    def __post_init__(self) -> None:
        for field in ("anchor_sizes", "anchor_ratios", "proposals_train", "proposals_test"):
            object.__setattr__(self, field, _tuples(getattr(self, field)))
        check_settings(self, _BOUNDS)
        check_choices(self)
        if not self.anchor_sizes or len({len(level) for level in self.anchor_sizes}) != 1:
            raise ValueError(
                f"anchor_sizes: got {self.anchor_sizes}, expected one tuple per level, all of the same length "
                "(the levels share one head)"
            )

    @property
    def anchors_per_location(self) -> int:
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetectorConfig:
        """The config that `to_dict` gave. ValueError names settings that this version does not know."""
        if not isinstance(values, Mapping):
            raise ValueError(f"config: got {values!r}, expected settings by name")
        strange = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if strange:
            raise ValueError(f"config: got unknown settings {', '.join(strange)}; a newer version may have written it")
        return cls(**values)


_UNIT, _POSITIVE = (0.0, 1.0), (1e-9, math.inf)
_BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("shorter", "longer", "rpn_channels", "rpn_batch_size", "roi_batch_size", "pool_size"), (1, 2**31)),
    **dict.fromkeys(("head_channels", "proposals_train", "proposals_test"), (1, 2**31)),
    **dict.fromkeys(("max_detections", "sampling_ratio"), (0, 2**31)),
    **dict.fromkeys(("anchor_sizes", "anchor_ratios", "feature_scale", "canonical_scale", "n_cls", "n_reg"), _POSITIVE),
    **dict.fromkeys(("rpn_lambda", "rpn_beta", "roi_beta", "min_size"), (0.0, math.inf)),
    **dict.fromkeys(("rpn_positive_iou", "rpn_negative_iou", "rpn_positive_fraction", "proposal_iou"), _UNIT),
    **dict.fromkeys(("roi_positive_iou", "roi_negative_iou_high", "roi_negative_iou_low"), _UNIT),
    **dict.fromkeys(("roi_positive_fraction", "dropout", "score_threshold", "detection_iou"), _UNIT),
}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def preset(backbone: str, **changes: Any) -> DetectorConfig:
    """The settings that suit a known backbone, with `changes` on top; an unknown one gets the paper's settings."""
    return DetectorConfig(**{"backbone": backbone, **_PRESETS.get(backbone, {}), **changes})


def config_for(backbone: nn.Module) -> DetectorConfig:
    """Settings that suit this backbone: its preset where it is one of ours, else those of `_CUSTOM`.

    There, anchors span 4 to 32 strides where there is one map; in a pyramid every level has one size, 8 strides.
    """
    for name, known in BACKBONES.items():
        if type(backbone) is known:
            return preset(name)
    strides = backbone_shape(backbone).rpn_strides
    scales = (4, 8, 16, 32) if len(strides) == 1 else (8,)
    sizes = tuple(tuple(float(scale * stride) for scale in scales) for stride in strides)
    return DetectorConfig(backbone=type(backbone).__name__, anchor_sizes=sizes, **_CUSTOM)


# For a backbone of the user's own, with or without weights: what detectors on ResNets are trained with today.
_CUSTOM: dict[str, Any] = {
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

_PRESETS: dict[str, dict[str, Any]] = {
    # For images of a few hundred pixels with objects from 32 pixels up.
    "squeezenet1_0": {
        "shorter": 320,
        "longer": 640,
        # On 0..255 the published weights give features of about 30. New layers on top of those make the first updates
        # so large that the backbone's features die: after twelve, 98 % of them are zero, 84 % before.
        "feature_scale": 1 / 32,
        "anchor_sizes": ((32.0, 64.0, 128.0, 256.0),),
        "ignore_straddling": False,
        "n_reg": 256.0,
        "rpn_lambda": 1.0,
        "proposals_train": (2000, 2000),
        "proposals_test": (1000, 300),
        "filter_order": "after_top_n",
        "min_size": 0.0,
        "pooling": "roi_align",
        "head_channels": 1024,
        "dropout": 0.0,
        "roi_beta": 1 / 9,
        "detection_iou": 0.5,
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
