"""The detector's settings: one plain dataclass that travels inside the checkpoint as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Everything but the weights that is needed to rebuild a detector. The defaults are the paper's (VGG-16).

    Sizes are in pixels of the resized picture, except `min_size`, which is in pixels of the original one.
    """

    # What it sees and what it names.
    class_names: tuple[str, ...] = ()
    backbone: str = "vgg16"
    preprocess: str = "caffe"
    shorter: int | None = 600
    longer: int | None = 1000

    # Anchors: one tuple of sizes per feature level (Ren et al. §3.1.1); ratios are height / width.
    anchor_sizes: tuple[tuple[float, ...], ...] = ((128.0, 256.0, 512.0),)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_convention: str = "torchvision"
    anchor_offset: float = 0.0

    # Region proposal network: its targets (§3.1.2) ...
    rpn_channels: int = 512
    rpn_batch_size: int = 256
    rpn_max_positive: int = 128
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    ignore_straddling: bool = True
    # ... its loss, (1/n_cls) sum L_cls + lambda (1/n_reg) sum L_reg for each image; None: rpn_batch_size and the
    # number of anchor locations ...
    n_cls: float | None = None
    n_reg: float | None = None
    rpn_lambda: float = 10.0
    rpn_beta: float = 1 / 9
    # ... and the proposals it makes (before top-N, after NMS).
    proposals_train: tuple[int, int] = (12000, 2000)
    proposals_test: tuple[int, int] = (6000, 300)
    proposal_iou: float = 0.7
    filter_order: str = "before_top_n"
    min_size: float = 16.0

    # Detection head: pooling ("roi_pool" or "roi_align"; several levels need the latter) ...
    pooling: str = "roi_pool"
    pool_size: int = 7
    sampling_ratio: int = 2
    aligned: bool = False
    canonical_scale: float = 224.0
    canonical_level: int = 4
    # ... its layers; head_channels is ignored where the backbone brings a head of its own (VGG's fc6 and fc7) ...
    head_channels: int = 4096
    dropout: float = 0.5
    class_agnostic: bool = False
    # ... its targets and its loss (Girshick 2015, §2.3).
    roi_batch_size: int = 128
    roi_positive_fraction: float = 0.25
    roi_positive_iou: float = 0.5
    roi_negative_iou_high: float = 0.5
    roi_negative_iou_low: float = 0.0
    roi_beta: float = 1.0

    # Detections.
    score_threshold: float = 0.05
    detection_iou: float = 0.3
    max_detections: int = 100

    def __post_init__(self) -> None:
        for field in ("anchor_sizes", "anchor_ratios", "class_names", "proposals_train", "proposals_test"):
            object.__setattr__(self, field, _tuples(getattr(self, field)))
        if self.pooling not in ("roi_pool", "roi_align"):
            raise ValueError(f"pooling: got {self.pooling!r}, expected 'roi_pool' or 'roi_align'")
        if self.pooling == "roi_pool" and len(self.anchor_sizes) > 1:
            raise ValueError(
                f"pooling: 'roi_pool' reads one feature level, anchor_sizes names {len(self.anchor_sizes)}; "
                "use 'roi_align'"
            )
        if not self.anchor_sizes or len({len(level) for level in self.anchor_sizes}) != 1:
            raise ValueError(
                f"anchor_sizes: got {self.anchor_sizes}, expected one tuple per level, all of the same length "
                "(the levels share one head)"
            )

    @property
    def anchors_per_location(self) -> int:
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> DetectorConfig:
        """The config that `to_json` wrote. ValueError names keys that this version does not know."""
        values = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            strange = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"config: got unknown settings {strange}; was it written by a newer version?")
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def preset(backbone: str, **changes: Any) -> DetectorConfig:
    """The settings that suit a known backbone, with `changes` on top; an unknown one gets the paper's settings."""
    return DetectorConfig(**{"backbone": backbone, **_PRESETS.get(backbone, {}), **changes})


_PRESETS: dict[str, dict[str, Any]] = {
    "vgg16": {},
    # A small trunk for small pictures: shorter side 320, objects from 32 pixels up.
    "squeezenet1_0": {
        "shorter": 320,
        "longer": 640,
        "anchor_sizes": ((32.0, 64.0, 128.0, 256.0),),
        "rpn_channels": 512,
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
    # For the embedded digits: 256x192 pictures, objects of 24 to 96 pixels, trained from nothing.
    "small": {
        "preprocess": "torch",
        "shorter": None,
        "longer": None,
        "anchor_sizes": ((18.0, 30.0), (48.0, 76.0)),
        "anchor_ratios": (1.3, 2.0),
        "rpn_channels": 64,
        "rpn_batch_size": 128,
        "rpn_max_positive": 64,
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
        "canonical_scale": 224.0,
    },
}
