"""Anchor sizes and ratios that fit the boxes of a data set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast._extras import require
from frcnn_fast.data.datasets import quick_target
from frcnn_fast.data.targets import checked_sample, checked_target
from frcnn_fast.data.transforms import resized_shape
from frcnn_fast.model import DetectorConfig

_MOST_ITEMS = 2000


def resized_sides(dataset: Any, config: DetectorConfig) -> Tensor:
    """Widths and heights [N, 2] of the boxes of up to 2,000 images, evenly spread, as the network sees them.

    Images whose size the data set does not tell are opened; those that cannot be read are passed over.
    """
    sides = []
    count = len(dataset)
    for place in range(min(count, _MOST_ITEMS)):
        index = place * count // min(count, _MOST_ITEMS)
        found = quick_target(dataset, index)
        try:
            if found is not None and found[1] is not None:
                target, size = checked_target(*found, name=index, cut=[]), found[1]
            else:
                image, target = checked_sample(dataset[index], name=index, cut=[])
                size = int(image.shape[-2]), int(image.shape[-1])
        except (OSError, ValueError):
            continue
        height, width, _ = resized_shape(size[0], size[1], config.shorter, config.longer)
        boxes = target["boxes"][~target["difficult"]]
        sides.append((boxes[:, 2:] - boxes[:, :2]) * torch.tensor([width / size[1], height / size[0]]))
    return torch.cat(sides) if sides else torch.zeros(0, 2)


def fitting_anchors(sides: Tensor, config: DetectorConfig) -> DetectorConfig:
    """The config with anchors that fit boxes of these sides [N, 2] best, as many as it has; itself where those that it
    has fit better.

    Sizes (the square root of the area) and ratios (height / width) are the centres of clusters of their logarithms, on
    which an octave counts the same everywhere. In a pyramid the finest level gets the smallest sizes.

    Raises:
        ValueError: there are no boxes.
    """
    if len(sides) == 0:
        raise ValueError("anchors: got 'auto', but the training set has no boxes that they could be fitted to")
    log_sizes, log_ratios = sides.log().mean(1), sides[:, 1].log() - sides[:, 0].log()
    levels, each = len(config.anchor_sizes), len(config.anchor_sizes[0])
    sizes = [round(math.exp(centre), 1) for centre in _centres(log_sizes, levels * each)]
    ratios = [round(math.exp(centre), 2) for centre in _centres(log_ratios, len(config.anchor_ratios))]
    fitted = dataclasses.replace(
        config,
        anchor_sizes=tuple(tuple(sizes[level * each : (level + 1) * each]) for level in range(levels)),
        anchor_ratios=tuple(ratios),
    )
    return fitted if mean_best_iou(sides, fitted) > mean_best_iou(sides, config) else config


def mean_best_iou(sides: Tensor, config: DetectorConfig) -> float:
    """Of each box with the anchor most like it, both centred on one point; the mean."""
    sizes = torch.tensor([size for level in config.anchor_sizes for size in level], dtype=torch.float64)
    roots = torch.tensor(config.anchor_ratios, dtype=torch.float64).sqrt()
    anchors = torch.stack([(sizes[:, None] / roots).flatten(), (sizes[:, None] * roots).flatten()], 1)
    boxes = sides.double()
    common = torch.minimum(boxes[:, None], anchors).prod(-1)
    union = boxes.prod(-1)[:, None] + anchors.prod(-1) - common
    return float((common / union).amax(1).mean())


def _centres(values: Tensor, count: int) -> list[float]:
    """Of `count` clusters, ascending. Of fewer different values each is one, and the others lie evenly between."""
    numbers = values.double().numpy()
    different = np.unique(numbers)
    if len(different) <= count:
        return [float(x) for x in np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(different)), different)]
    kmeans = require("sklearn.cluster", "train").KMeans(count, n_init=10, random_state=0)
    return sorted(kmeans.fit(numbers[:, None]).cluster_centers_.flatten().tolist())
