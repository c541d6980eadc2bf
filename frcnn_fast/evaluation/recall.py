"""Recall of proposals: how many of the objects are covered by the best so many boxes, whatever their classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_fast._names import checked_class_names
from frcnn_fast.evaluation.inputs import as_array, objects_of, pairwise_iou

LIMITS = (100, 300, 1000)
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_SHOWN = (0.5, 0.7)
_AREAS = {
    "all": (0.0, math.inf),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, math.inf),
}


@dataclasses.dataclass
class RecallResult:
    """Recall of a source of proposals; NaN where there are no objects.

    Attributes:
        average: AR by area ("all", "small", "medium", "large", COCO's bounds) and number of proposals: the mean of the
            recalls at IoU 0.5, 0.55 ... 0.95.
        recall: by IoU (0.5, 0.7) and number of proposals, all areas.
        num_objects: by area; difficult and crowd objects are not counted.
        proposals_per_image: their mean number.
    """

    average: dict[str, dict[int, float]]
    recall: dict[float, dict[int, float]]
    num_objects: dict[str, int]
    proposals_per_image: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; None for NaN."""
        return {
            "average_recall": {area: _named(of) for area, of in self.average.items()},
            "recall": {str(iou): _named(of) for iou, of in self.recall.items()},
            "objects": self.num_objects,
            "proposals_per_image": None if math.isnan(self.proposals_per_image) else self.proposals_per_image,
        }

    def table(self) -> str:
        """The result as aligned text."""
        return recall_table({"": self})


def recall_table(results: Mapping[str, RecallResult]) -> str:
    """Results by the names of their sources, as aligned text: one line a source."""
    first = next(iter(results.values()))
    limits = list(first.average["all"])
    columns = [f"AR@{limit}" for limit in limits]
    columns += [f"{area}@{limits[-1]}" for area in first.average if area != "all"]
    columns += [f"R{iou}@{limit}" for iou in first.recall for limit in limits]
    rows = []
    for name, result in results.items():
        figures = [result.average["all"][limit] for limit in limits]
        figures += [of[limits[-1]] for area, of in result.average.items() if area != "all"]
        figures += [of[limit] for of in result.recall.values() for limit in limits]
        shown = ["-" if math.isnan(figure) else f"{figure:.3f}" for figure in figures]
        rows.append([name, *shown, f"{result.proposals_per_image:.0f}"])
    table = [["proposals" if any(results) else "", *columns, "boxes/image"], *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    return "\n".join(line.strip() if not any(results) else line.rstrip() for line in lines)


class RecallEvaluator:
    """Collects the proposals of image after image, then gives their recall by COCO's rules.

    Proposals are taken from the first to the last. At each IoU threshold a proposal takes the one object that it
    overlaps most of those that are free and that it overlaps by at least the threshold (the last of equals); so two
    proposals of one object find one. Classes play no part. IoU is computed in float64.

    Args:
        class_names: of the data set.
        limits: numbers of proposals an image.
    """

    def __init__(self, class_names: Sequence[str], *, limits: Sequence[int] = LIMITS) -> None:
        if not limits or any(limit < 1 for limit in limits):
            raise ValueError(f"limits: got {list(limits)}, expected numbers of proposals, at least 1")
        self.class_names = checked_class_names(class_names)
        self.limits = sorted(limits)
        shape = len(THRESHOLDS), len(self.limits)
        self._found = {area: np.zeros(shape, dtype=np.int64) for area in _AREAS}
        self._objects = dict.fromkeys(_AREAS, 0)
        self._proposals = self._images = 0

    def add(self, proposals: Any, target: Mapping[str, Any]) -> None:
        """Add one image.

        Args:
            proposals: boxes [N, 4], best first: a tensor on any device, an array or a list.
            target: as of a data set, in the same pixels; `area` [G], where it is there, tells small from large.

        Raises:
            ValueError: shapes do not fit, or the target breaks the rules of `frcnn_fast.data.checked_target`.
        """
        boxes = as_array({"proposals": proposals}, "proposals", "image")
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"proposals: got shape {list(boxes.shape)}, expected [N, 4]")
        objects, _, difficult = objects_of(target, len(self.class_names))
        areas = (objects[:, 2:] - objects[:, :2]).prod(1)
        if target.get("area") is not None:
            areas = as_array(target, "area", "target")
            if areas.shape != (len(objects),):
                raise ValueError(f"target['area'] has shape {list(areas.shape)}, expected [{len(objects)}]")
        self._images += 1
        self._proposals += len(boxes)
        overlaps = pairwise_iou(boxes[: self.limits[-1]], objects)
        for area, (low, high) in _AREAS.items():
            counted = ~difficult & (areas >= low) & (areas <= high)
            self._objects[area] += int(counted.sum())
            self._found[area] += _found(overlaps[:, counted], self.limits)

    def result(self) -> RecallResult:
        """The recall over all images added so far."""
        recalls = {
            area: found / self._objects[area] if self._objects[area] else np.full(found.shape, math.nan)
            for area, found in self._found.items()
        }
        return RecallResult(
            average={area: self._by_limit(values.mean(0)) for area, values in recalls.items()},
            recall={iou: self._by_limit(recalls["all"][THRESHOLDS.index(iou)]) for iou in _SHOWN},
            num_objects=dict(self._objects),
            proposals_per_image=self._proposals / self._images if self._images else math.nan,
        )

    def _by_limit(self, values: np.ndarray) -> dict[int, float]:
        return dict(zip(self.limits, map(float, values), strict=True))


def _found(overlaps: np.ndarray, limits: Sequence[int]) -> np.ndarray:
    """How many of the G objects are found at each threshold by the first so many proposals; overlaps: [N, G]."""
    thresholds = np.array(THRESHOLDS)[:, None]
    taken = np.zeros((len(THRESHOLDS), overlaps.shape[1]), dtype=bool)
    found = np.zeros((len(THRESHOLDS), len(overlaps) + 1), dtype=np.int64)  # by the number of proposals looked at
    if overlaps.shape[1]:
        for row in np.flatnonzero(overlaps.max(1) >= THRESHOLDS[0]):
            free = np.where(~taken & (overlaps[row] >= thresholds), overlaps[row], -1.0)[:, ::-1]
            best = overlaps.shape[1] - 1 - free.argmax(1)  # the last of equals
            hit = free.max(1) >= 0
            taken[hit, best[hit]] = True
            found[hit, row + 1] = 1
    return found.cumsum(1)[:, [min(limit, len(overlaps)) for limit in limits]]


def _named(values: Mapping[int, float]) -> dict[str, float | None]:
    return {str(limit): None if math.isnan(value) else value for limit, value in values.items()}
