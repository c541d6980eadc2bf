"""PASCAL VOC average precision, as the development kit computes it (Everingham et al., IJCV 2010, §4.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_fast._names import checked_class_names
from frcnn_fast.evaluation.curves import Curve
from frcnn_fast.evaluation.inputs import found_of, objects_of, pairwise_iou


def voc_ap(true_positives: np.ndarray, num_objects: int, *, use_07_metric: bool = False) -> float:
    """Average precision of one class's ranked detections.

    Args:
        true_positives: bool [D], best score first: whether each detection is right (ignored ones are left
            out).
        num_objects: number of objects to be found.
        use_07_metric: the mean of the best precision at recall ≥ 0, 0.1 … 1 (VOC 2007), instead of the area
            under the curve whose precision is made to fall monotonically (VOC 2010 and later).

    Returns:
        The average precision; NaN without objects, 0 without detections.
    """
    if num_objects == 0:
        return math.nan
    right = np.cumsum(np.asarray(true_positives, dtype=bool))
    if len(right) == 0:
        return 0.0
    precision = right / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    if use_07_metric:
        # recall ≥ t / 10 in whole numbers: as doubles, 3 / 10 is less than 3 · 0.1 and would miss its point.
        first = [int(np.searchsorted(right * 10, t * num_objects)) for t in range(11)]
        return sum(float(best_from_here[i]) for i in first if i < len(right)) / 11
    gains = np.diff(right, prepend=0)
    return float((best_from_here * gains).sum() / num_objects)


@dataclasses.dataclass
class VocResult:
    """Average precisions by class name, in the order of the labels; NaN for a class without objects.

    Attributes:
        ap07: VOC 2007's 11-point average precision.
        ap_area: area under the precision-recall curve (VOC 2010 and later).
        num_objects: objects of each class, difficult ones not counted.
        num_detections: detections of each class.
        iou_threshold: the overlap that a right detection must exceed.
    """

    ap07: dict[str, float]
    ap_area: dict[str, float]
    num_objects: dict[str, int]
    num_detections: dict[str, int]
    iou_threshold: float

    @property
    def map07(self) -> float:
        """Mean of `ap07` over the classes that have objects; NaN if none has."""
        return _mean(self.ap07)

    @property
    def map_area(self) -> float:
        """Mean of `ap_area` over the classes that have objects; NaN if none has."""
        return _mean(self.ap_area)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers for a JSON file; None for NaN."""
        return {
            "iou_threshold": self.iou_threshold,
            "map07": _plain(self.map07),
            "map_area": _plain(self.map_area),
            "classes": {
                name: {
                    "ap07": _plain(self.ap07[name]),
                    "ap_area": _plain(self.ap_area[name]),
                    "objects": self.num_objects[name],
                    "detections": self.num_detections[name],
                }
                for name in self.ap07
            },
        }

    def table(self) -> str:
        """The result as aligned text, one line per class and one for the mean."""
        width = max(5, *(len(name) for name in self.ap07))
        lines = [f"{'class':<{width}}  AP 11-point  AP area  objects  detections"]
        for name in self.ap07:
            lines.append(
                f"{name:<{width}}  {_figure(self.ap07[name]):>11}  {_figure(self.ap_area[name]):>7}"
                f"  {self.num_objects[name]:>7}  {self.num_detections[name]:>10}"
            )
        lines.append(
            f"{'mean':<{width}}  {_figure(self.map07):>11}  {_figure(self.map_area):>7}"
            f"  {sum(self.num_objects.values()):>7}  {sum(self.num_detections.values()):>10}"
        )
        return "\n".join(lines)


class VocEvaluator:
    """Collects detections image by image, then computes the average precision of every class.

    Detections of a class are taken by falling score, over all images; equal scores in the order in which
    they were added. Each looks at the one object of its class and image that it overlaps most (the first of
    equals). It is right if that overlap is greater than `iou_threshold` and no earlier detection took the
    object; if the object is difficult, the detection is ignored; else it is wrong. So of two detections of
    one object the second is wrong, even if another object is free. IoU is computed in float64.

    Args:
        class_names: label k is class_names[k - 1]; at least one, all different.
        iou_threshold: in [0, 1).
        legacy: boxes are inclusive pixels, widths are x2 - x1 + 1, as in the devkit's files. The data sets of
            this library have half-open boxes, whose plain width is the same number: leave it False for them.
    """

    def __init__(self, class_names: Sequence[str], *, iou_threshold: float = 0.5, legacy: bool = False) -> None:
        if not 0 <= iou_threshold < 1:
            raise ValueError(f"iou_threshold must be in [0, 1), got {iou_threshold}")
        self.class_names = checked_class_names(class_names)
        self.iou_threshold = iou_threshold
        self._offset = 1.0 if legacy else 0.0
        self._num_objects = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        self._scores: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._overlaps: list[np.ndarray] = []
        self._objects: list[np.ndarray] = []  # number of the object each detection overlaps most, over all images
        self._difficult: list[np.ndarray] = []
        self._seen = 0

    def add(self, detections: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Add one image.

        Args:
            detections: `boxes` [D, 4], `scores` [D], `labels` [D] in 1..K; tensors on any device, arrays or
                lists, in any order. A box with a NaN or without extent matches nothing.
            target: `boxes` [G, 4], `labels` [G] in 1..K, and perhaps `difficult` [G], as a data set gives it.
                In the same pixels as the detections.

        Raises:
            ValueError: an entry is missing, shapes do not fit, a score is NaN, a label is no whole number in 1..K, or
                a box of the target is none.
        """
        inclusive = self._offset > 0
        boxes, scores, labels = found_of(detections, len(self.class_names), inclusive)
        gt_boxes, gt_labels, difficult = objects_of(target, len(self.class_names), inclusive)

        np.add.at(self._num_objects, gt_labels[~difficult], 1)
        overlap = np.zeros(len(boxes))
        nearest = np.full(len(boxes), -1, dtype=np.int64)
        if len(boxes) and len(gt_boxes):
            iou = np.where(labels[:, None] == gt_labels[None, :], pairwise_iou(boxes, gt_boxes, self._offset), 0.0)
            best = iou.argmax(1)
            overlap, nearest = iou[np.arange(len(boxes)), best], best + self._seen
        self._scores.append(scores)
        self._labels.append(labels)
        self._overlaps.append(overlap)
        self._objects.append(nearest)
        self._difficult.append(difficult)
        self._seen += len(gt_boxes)

    def result(self) -> VocResult:
        """The average precisions over all images added so far."""
        result = VocResult({}, {}, {}, {}, self.iou_threshold)
        labels = _joined(self._labels, np.int64)
        for label, (name, curve) in enumerate(self.curves().items(), start=1):
            result.ap07[name] = voc_ap(curve.right, curve.num_objects, use_07_metric=True)
            result.ap_area[name] = voc_ap(curve.right, curve.num_objects)
            result.num_objects[name] = curve.num_objects
            result.num_detections[name] = int((labels == label).sum())
        return result

    def curves(self) -> dict[str, Curve]:
        """The ranked detections of every class over all images added so far."""
        scores, labels = _joined(self._scores, np.float64), _joined(self._labels, np.int64)
        overlaps, objects = _joined(self._overlaps, np.float64), _joined(self._objects, np.int64)
        difficult = _joined(self._difficult, np.bool_)
        curves = {}
        for label, name in enumerate(self.class_names, start=1):
            mine = np.flatnonzero(labels == label)
            order = mine[np.argsort(-scores[mine], kind="stable")]
            hit = overlaps[order] > self.iou_threshold
            ignored = np.zeros(len(order), dtype=bool)
            ignored[hit] = difficult[objects[order[hit]]]
            first = np.zeros(len(order), dtype=bool)
            hits = np.flatnonzero(hit)
            first[hits[np.unique(objects[order[hits]], return_index=True)[1]]] = True
            right = (hit & first)[~ignored]
            curves[name] = Curve(scores[order][~ignored], right, int(self._num_objects[label]))
        return curves


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)


def _mean(values: Mapping[str, float]) -> float:
    known = [value for value in values.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
