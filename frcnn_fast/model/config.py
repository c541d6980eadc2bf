"""The detector's settings: one plain dataclass that travels in the checkpoint as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from frcnn_fast._options import check_choices, option
from frcnn_fast._settings import check_settings


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Everything but the weights that is needed to rebuild a detector. The defaults are the paper's (VGG-16).

    Sizes are in pixels of the resized image, except `min_size`, which is in pixels of the original one.
    """

    backbone: str = option(
        "vgg16",
        "vgg16, zf, squeezenet1_0, resnetN_c4 or resnetN_fpn (N: 18, 34, 50, 101), mobilenet_v3_large or "
        "mobilenet_v3_large_fpn, small, or timm:MODEL",
    )
    norm: str = option("frozen", "the backbone's batch normalisation: as loaded, or by each batch", ("frozen", "batch"))
    stride_in_1x1: bool = option(False, "ResNet as Caffe's: a layer's stride in its first 1x1 convolution")
    preprocess: str = option(
        "caffe",
        "scaling of the input: caffe (BGR 0..255 minus the mean), msra (the same with a mean of more digits) or torch "
        "(RGB 0..1, mean and deviation)",
        ("caffe", "msra", "torch"),
    )
    shorter: int | None = option(600, "resize the shorter side to this many pixels")
    longer: int | None = option(1000, "but the longer side to at most this many")
    resize: str = option(
        "antialias",
        "how: antialias, to whole pixel values, or torchvision (neither; its rounding of sizes)",
        ("antialias", "torchvision"),
    )
    feature_scale: float = option(1.0, "factor of the backbone's maps, for weights whose features are far from 1")

    anchor_sizes: tuple[tuple[float, ...], ...] = option(
        ((128.0, 256.0, 512.0),), "anchor sizes in pixels, one comma-separated list for each feature level"
    )
    anchor_ratios: tuple[float, ...] = option((0.5, 1.0, 2.0), "height / width of the anchors")
    anchor_convention: str = option("torchvision", "how they are rounded", ("torchvision", "detectron2"))
    anchor_offset: float = option(0.0, "place of an anchor in its cell, in strides")
    anchor_stride: str = option(
        "backbone",
        "pixels from cell to cell: the backbone's stride, or, as torchvision, the image's side // the map's",
        ("backbone", "image"),
    )

    rpn_convs: int = option(1, "3x3 convolutions of the proposal network")
    rpn_channels: int = option(512, "and their channels")
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
    proposal_score_threshold: float = option(0.0, "proposals score at least this")
    min_size: float = option(16.0, "smallest side of a proposal in pixels of the original image")

    parts: str = option(
        "both",
        "which networks are trained and so of use: both, rpn or roi_head (set by --scheme)",
        ("both", "rpn", "roi_head"),
    )
    pooling: str = option(
        "roi_pool",
        "region pooling: roi_pool (of one feature level), roi_align, or prroi_pool, which has gradients in the boxes",
        ("roi_pool", "roi_align", "prroi_pool"),
    )
    pool_size: int = option(7, "its output is this many cells high and wide")
    pool_levels: tuple[int, ...] | None = option(
        None, "pyramid pooling (SPP): outputs of these sizes side by side, such as 1,2,3,6; the head is then fc"
    )
    sampling_ratio: int = option(2, "samples of roi_align in a cell, along each axis")
    aligned: bool = option(False, "shift of roi_align by half a pixel")
    canonical_scale: float = option(224.0, "a region of this size belongs to canonical_level")
    canonical_level: int = option(4, "level of the pyramid, log2 of its stride")
    head: str = option(
        "own",
        "layers of the head: own (the backbone's next ones, where it has some; else fc), fc (two fully connected) or "
        "conv (four convolutions with batch normalisation, one fully connected)",
        ("own", "fc", "conv"),
    )
    head_channels: int = option(4096, "width of its fully connected layers; vgg16 has its own at 4096")
    dropout: float = option(0.5, "dropout after each of the two")
    box_weights: tuple[float, float, float, float] = option(
        (10.0, 10.0, 5.0, 5.0), "factors of the head's dx, dy, dw, dh"
    )
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
    detection_min_size: float = option(0.0, "smallest side of a detection, in pixels of the resized image")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _tuples(getattr(self, field.name)))
        check_settings(self, _BOUNDS)
        check_choices(self)
        if self.pool_levels and self.head == "conv":
            raise ValueError(f"pool_levels: got {self.pool_levels} with head 'conv', which needs a map; use head 'fc'")
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
    **dict.fromkeys(
        ("shorter", "longer", "rpn_convs", "rpn_channels", "rpn_batch_size", "roi_batch_size", "pool_size"), (1, 2**31)
    ),
    **dict.fromkeys(("head_channels", "proposals_train", "proposals_test", "pool_levels"), (1, 2**31)),
    **dict.fromkeys(("max_detections", "sampling_ratio"), (0, 2**31)),
    **dict.fromkeys(("anchor_sizes", "anchor_ratios", "feature_scale", "canonical_scale", "n_cls", "n_reg"), _POSITIVE),
    **dict.fromkeys(("box_weights",), _POSITIVE),
    **dict.fromkeys(("rpn_lambda", "rpn_beta", "roi_beta", "min_size", "detection_min_size"), (0.0, math.inf)),
    **dict.fromkeys(("rpn_positive_iou", "rpn_negative_iou", "rpn_positive_fraction", "proposal_iou"), _UNIT),
    **dict.fromkeys(("roi_positive_iou", "roi_negative_iou_high", "roi_negative_iou_low"), _UNIT),
    **dict.fromkeys(("roi_positive_fraction", "dropout", "score_threshold", "detection_iou"), _UNIT),
    **dict.fromkeys(("proposal_score_threshold",), _UNIT),
}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
