"""COCO average precision and recall, computed by the COCO API itself (extra `coco`)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_fast._extras import require
from frcnn_fast._names import checked_class_names
from frcnn_fast.evaluation.inputs import as_array, found_of, objects_of

# In the order in which the API gives them.
_FIGURES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
_TEXTS = (
    "AP  at IoU 0.50:0.95",
    "AP  at IoU 0.50",
    "AP  at IoU 0.75",
    *(f"AP  at IoU 0.50:0.95, {size} objects" for size in ("small", "medium", "large")),
    *(f"AR  with {count} detection{'s' * (count > 1)} an image" for count in (1, 10, 100)),
    *(f"AR  with 100 detections, {size} objects" for size in ("small", "medium", "large")),
)


@dataclasses.dataclass
class CocoResult:
    """COCO's twelve figures, as fractions; NaN where there was no object to find.

    `ap` is the mean over IoU 0.50, 0.55 … 0.95 and over classes; `ap50`, `ap75` are at one IoU; small, medium
    and large objects have areas up to 32², up to 96² and above. `ar1`, `ar10`, `ar100` are recalls with as
    many detections an image. `ap_by_class` is `ap` of each class.
    """

    ap: float = math.nan
    ap50: float = math.nan
    ap75: float = math.nan
    ap_small: float = math.nan
    ap_medium: float = math.nan
    ap_large: float = math.nan
    ar1: float = math.nan
    ar10: float = math.nan
    ar100: float = math.nan
    ar_small: float = math.nan
    ar_medium: float = math.nan
    ar_large: float = math.nan
    ap_by_class: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers for a JSON file; NaN stays NaN (`write_json` makes it null)."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """The result as aligned text: the twelve figures, then the average precision of every class."""
        lines = [f"{text:<44}  {_figure(getattr(self, name))}" for name, text in zip(_FIGURES, _TEXTS, strict=True)]
        width = max(5, *(len(name) for name in self.ap_by_class)) if self.ap_by_class else 5
        by_class = [f"{name:<{width}}  {_figure(value)}" for name, value in self.ap_by_class.items()]
        return "\n".join([*lines, "", f"{'class':<{width}}  AP", *by_class])


class CocoEvaluator:
    """Collects detections image by image, then gives COCO's figures.

    Detections of equal score rank in the order in which their images were added; the COCO API itself takes
    images by rising id.

    Args:
        class_names: label k is class_names[k - 1].

    Raises:
        ImportError: pycocotools is missing.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        require("pycocotools.cocoeval", "coco")
        self.class_names = checked_class_names(class_names)
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    def add(self, detections: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Add one image.

        Args:
            detections: `boxes` [D, 4] half-open, `scores` [D], `labels` [D] in 1..K; tensors on any device, arrays or
                lists. A box with a NaN or without extent matches nothing.
            target: `boxes` [G, 4], `labels` [G]; perhaps `crowd` [G], boxes that stand for many objects
                (where it is missing, `difficult` is taken for it: detections on them are not counted);
                perhaps `area` [G], the size that tells small from large objects (else the box's).

        Raises:
            ValueError: as `VocEvaluator.add`; the image is then not counted.
        """
        image = len(self._images) + 1
        self._images.append({"id": image})
        boxes, labels, crowd = objects_of(target, len(self.class_names))
        if target.get("crowd") is not None and target.get("difficult") is not None:
            crowd = objects_of({**target, "difficult": None}, len(self.class_names)).difficult
        areas = _areas(boxes)
        if target.get("area") is not None:
            areas = as_array(target, "area", "target")
            if areas.shape != labels.shape or not (np.isfinite(areas) & (areas >= 0)).all():
                raise ValueError(
                    f"target['area'] is {areas.tolist()}, expected a finite number of at least 0 for each box"
                )
        found = found_of(detections, len(self.class_names))
        found = found._replace(boxes=np.nan_to_num(found.boxes))  # a box without area matches nothing

        image = len(self._images) + 1
        self._images.append({"id": image})
        for box, label, is_crowd, area in zip(boxes, labels, crowd, areas, strict=True):
            self._objects.append(_annotation(len(self._objects), image, label, box, area, is_crowd))
        for box, score, label, area in zip(*found, _areas(found.boxes), strict=True):
            annotation = _annotation(len(self._detections), image, label, box, area, False)
            self._detections.append({**annotation, "score": float(score)})

    def result(self) -> CocoResult:
        """COCO's figures over all images added so far."""
        evaluation = require("pycocotools.cocoeval", "coco")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            run = evaluation.COCOeval(self._api(self._objects), self._api(self._detections), "bbox")
            if not self._images or not self._objects:
                return CocoResult(ap_by_class=dict.fromkeys(self.class_names, math.nan))
            run.evaluate()
            run.accumulate()
            run.summarize()
        figures = {
            name: float(value) if value >= 0 else math.nan for name, value in zip(_FIGURES, run.stats, strict=True)
        }
        precision = run.eval["precision"][:, :, :, 0, -1]  # IoU × recall × class, all areas, 100 detections
        by_class = {
            name: float(curve.mean()) if (curve := precision[:, :, k]).min() >= 0 else math.nan
            for k, name in enumerate(self.class_names)
        }
        return CocoResult(**figures, ap_by_class=by_class)

    def _api(self, annotations: list[dict[str, Any]]) -> Any:
        api = require("pycocotools.coco", "coco").COCO()
        api.dataset = {
            "images": self._images,
            "annotations": [dict(annotation) for annotation in annotations],  # it writes into them
            "categories": [{"id": k, "name": name} for k, name in enumerate(self.class_names, start=1)],
        }
        api.createIndex()
        return api


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _areas(boxes: np.ndarray) -> np.ndarray:
    # The API does not count a detection above its largest area.
    return np.minimum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1e10)


def _annotation(index: int, image: int, label: int, box: np.ndarray, area: float, crowd: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = box.tolist()
    return {
        "id": index + 1,  # the API takes the id 0 for "no match"
        "image_id": image,
        "category_id": int(label),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(area),
        "iscrowd": int(crowd),
    }
