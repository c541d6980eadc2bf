"""What both evaluators take: detections and targets of any kind, by one set of rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from frcnn_fast.data.targets import TargetError, as_numbers, check_target


class Found(NamedTuple):
    boxes: np.ndarray  # float64 [D, 4]; all NaN where it is no box: not finite, or without extent
    scores: np.ndarray  # float64 [D]
    labels: np.ndarray  # int64 [D]


class Objects(NamedTuple):
    boxes: np.ndarray  # float64 [G, 4]
    labels: np.ndarray  # int64 [G]
    difficult: np.ndarray  # bool [G]


def found_of(detections: Any, num_classes: int, inclusive: bool = False) -> Found:
    """Checked detections.

    Raises:
        ValueError: an entry is missing, shapes do not fit, a score is NaN, or a label is no whole number in 1..K.
    """
    if not isinstance(detections, Mapping):
        raise ValueError(f"detections: got {type(detections).__name__}, expected a dict of boxes, scores and labels")
    boxes, scores, labels = (as_array(detections, key, "detections") for key in ("boxes", "scores", "labels"))
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"detections['boxes'] has shape {list(boxes.shape)}, expected [D, 4]")
    for key, values in (("scores", scores), ("labels", labels)):
        if values.ndim != 1:
            raise ValueError(f"detections[{key!r}] has shape {list(values.shape)}, expected [D]")
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(
            f"detections has entries of different lengths: {len(boxes)} boxes, {len(scores)} scores and {len(labels)}"
            " labels: expected as many of each"
        )
    if np.isnan(scores).any():
        raise ValueError("detections['scores'] has a NaN: such a detection has no rank; drop it")
    wrong = ~((labels >= 1) & (labels <= num_classes) & (labels == np.floor(labels)))
    if wrong.any():
        raise ValueError(f"detections['labels'] must be in 1..{num_classes}, got {_range(labels)}")
    sides = boxes[:, 2:] - boxes[:, :2]
    sound = np.isfinite(boxes).all(1) & ((sides >= 0) if inclusive else (sides > 0)).all(1)
    return Found(np.where(sound[:, None], boxes, np.nan), scores, labels.astype(np.int64))


def objects_of(target: Any, num_classes: int, inclusive: bool = False) -> Objects:
    """Checked objects of a target (see `frcnn_fast.data.checked_target`).

    Raises:
        ValueError: as there; the target's boxes may lie anywhere.
    """
    found = check_target(target, None, num_classes, inclusive=inclusive)
    if found.faults:
        labels = found.target.get("labels")
        if labels is not None and found.faults[0].key == "labels" and found.faults[0].row is not None:
            raise TargetError(
                f"target['labels'] must be in 1..{num_classes}, got {_range(as_array(target, 'labels', ''))}"
            )
        if labels is not None and found.target["boxes"] is not None and len(labels) != len(found.target["boxes"]):
            counts = f"{len(found.target['boxes'])} boxes, {len(labels)} labels"
            raise TargetError(f"target has {counts}: expected as many of each")
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        name = f"image {found.target['image_id']}: " if "image_id" in found.target else ""
        raise TargetError(f"{name}{found.faults[0]}{more}")
    # The rules are about float32; the figures come from what was given.
    boxes = as_array(target, "boxes", "target").reshape(-1, 4)
    return Objects(boxes, found.target["labels"].numpy(), found.target["difficult"].numpy())


def _range(labels: np.ndarray) -> str:
    return f"{labels.min():g}..{labels.max():g}"


def as_array(values: Mapping[str, Any], key: str, name: str) -> np.ndarray:
    """values[key] as float64."""
    if key not in values:
        raise ValueError(f"{name}: has no {key!r}, only {', '.join(map(str, values)) or 'nothing'}")
    try:
        return as_numbers(values[key]).double().numpy()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name}[{key!r}] {error}, expected numbers") from error


def pairwise_iou(boxes: np.ndarray, others: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """float64 IoU [D, G] of boxes [D, 4] and [G, 4]; 0 where it is not a number. offset: 1 for inclusive pixels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.maximum(boxes[:, None, :2], others[None, :, :2])
        high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
        intersection = np.maximum(high - low + offset, 0.0).prod(-1)
        areas = [(b[:, 2:] - b[:, :2] + offset).prod(-1) for b in (boxes, others)]
        union = areas[0][:, None] + areas[1][None, :] - intersection
        return np.nan_to_num(intersection / union, nan=0.0, posinf=0.0, neginf=0.0)
