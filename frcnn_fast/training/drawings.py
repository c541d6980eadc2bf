"""Drawings of what a trained detector finds, beside the truth."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from frcnn_fast.data import DetectionDataset
from frcnn_fast.data.targets import Target, checked_sample
from frcnn_fast.data.transforms import Sample
from frcnn_fast.evaluate import detect_all
from frcnn_fast.inference import Detector
from frcnn_fast.model import FasterRCNN
from frcnn_fast.visualize import save_image, side_by_side


def draw_first(
    detector: FasterRCNN,
    dataset: DetectionDataset,
    folder: Path,
    count: int,
    proposals: Mapping[str, Tensor] | None = None,
) -> None:
    """Draw the first `count` images into a folder. What fails is warned about.

    proposals: as in `frcnn_fast.evaluate.evaluate`.
    """
    for index in range(min(count, len(dataset))):
        try:
            image, target = checked_sample(dataset[index], name=index, cut=[])
            found = _found(detector, image, target, proposals)
            drawing = side_by_side(image, found, target, detector.class_names)
            name = target["image_id"].replace(os.sep, "_")[:80]
            save_image(folder / f"{name}.png", drawing)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # a drawing is not worth the run's result
            warnings.warn(f"test image {index} was not drawn ({error})", stacklevel=2)


def _found(
    detector: FasterRCNN, image: Tensor, target: Target, proposals: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    if proposals is not None:
        return next(detect_all(detector, _One((image, target), detector.class_names), proposals, progress=False))
    found = Detector(detector)(image)
    return {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}


class _One:
    """A data set of one image."""

    def __init__(self, sample: Sample, class_names: list[str]) -> None:
        self.sample, self.class_names = sample, class_names

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample
