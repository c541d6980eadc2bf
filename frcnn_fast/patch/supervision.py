"""Our NMS and IoU under supervision, without a change of anybody's code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from frcnn_fast import ops
from frcnn_fast.patch.core import Library, Patch

# With fewer, supervision's own code is as fast.
_FEWEST_BOXES, _FEWEST_PAIRS = 20, 1000


def patch_supervision() -> Patch:
    """Puts the fast steps under supervision, until it is undone.

        with frcnn_fast.patch_supervision():
            detections = detections.with_nms(0.5)

    As `patch_torchvision`, it holds for the whole process, patches count, and functions are replaced in every module
    that has imported them by name. Replaced are, for overlaps measured by IoU:

    - `box_non_max_suppression` (so `Detections.with_nms`, `InferenceSlicer`): `ops.nms`, `ops.batched_nms`; without a
      matrix of boxes x boxes, so in memory O(N);
    - `box_iou_batch` (so also soft NMS, confusion matrices and recall): `ops.box_iou`.

    The answers are supervision's, to the bit: its order among equal and NaN scores, its IoU in float64 rounded to
    float32, boxes with corners that are not finite (kept; they overlap nothing), classes of any number.

    A call that these do not serve runs supervision's own code: overlaps by the smaller area (IOS), arrays that are not
    plain, real and of the shape expected, thresholds outside [0, 1], and so few boxes (20; 1,000 pairs) that its own
    code is as fast. Masks, oriented boxes and merging are its own.

    Returns:
        The patch, with `undo()` and `replaced`, a list of names; also a context manager.

    Raises:
        ImportError: supervision is not installed, is older than 0.30 (its IoU was another), or is of a version that
            lacks what would be replaced.
    """
    return _SUPERVISION.patch()


def _is_iou(overlap_metric: Any) -> bool:
    name = getattr(overlap_metric, "value", overlap_metric)
    return isinstance(name, str) and name.upper() == "IOU"


def _is_matrix(array: Any) -> bool:
    """Of numbers for which a float64 is enough."""
    return type(array) is np.ndarray and array.ndim == 2 and array.dtype.kind in "fiu" and array.itemsize <= 8


def _threshold(iou_threshold: float) -> float:
    """Above it are exactly the float64 whose nearest float32 is above the threshold."""
    below = np.float32(iou_threshold)
    if float(below) > iou_threshold:
        below = np.nextafter(below, np.float32(-1))
    middle = (float(below) + float(np.nextafter(below, np.float32(2)))) / 2
    # The middle itself goes to the one of the two whose last bit is 0.
    return middle if np.float32(middle) == below else float(np.nextafter(middle, 0.0))


def _class_ids(categories: np.ndarray) -> Any:
    """int64, equal where the categories are."""
    with np.errstate(invalid="ignore"):
        ids = categories.astype(np.int64)
    if (ids == categories).all():
        return ids
    return np.unique(categories, return_inverse=True)[1].astype(np.int64)


def _box_non_max_suppression(predictions: Any, iou_threshold: float = 0.5, overlap_metric: Any = "IOU") -> Any:
    if not (
        _is_iou(overlap_metric)
        and _is_matrix(predictions)
        and predictions.shape[1] >= 5
        and len(predictions) >= _FEWEST_BOXES
        and isinstance(iou_threshold, (int, float, np.float32))
        and 0 <= iou_threshold <= 1
    ):
        return NotImplemented
    agnostic = predictions.shape[1] == 5
    # supervision appends a class in float64, and sorts then. Its sort is not stable: ties come as the same sort of the
    # same numbers gives them.
    by = predictions[:, 4].astype(np.float64) if agnostic else predictions[:, 4]
    order = by.argsort()[::-1]
    boxes: Any = predictions[order, :4].astype(np.float64)
    takes_part = np.isfinite(boxes).all(1)
    if not agnostic:
        categories = predictions[order, 5]
        takes_part &= categories == categories  # a NaN is no class, not even its own
    keep = np.ones(len(order), bool)
    keep[order[takes_part]] = False
    order, boxes = order[takes_part], boxes[takes_part]
    ranks: Any = np.arange(len(order), 0, -1, dtype=np.float64)
    if agnostic:
        kept = ops.nms(boxes, ranks, _threshold(iou_threshold))
    else:
        kept = ops.batched_nms(boxes, ranks, _class_ids(categories[takes_part]), _threshold(iou_threshold))
    keep[order[kept]] = True
    return keep


def _box_iou_batch(boxes_true: Any, boxes_detection: Any, overlap_metric: Any = "IOU") -> Any:
    both = (boxes_true, boxes_detection)
    if not (
        _is_iou(overlap_metric)
        and all(_is_matrix(boxes) and boxes.shape[1] == 4 for boxes in both)
        and len(boxes_true) * len(boxes_detection) >= _FEWEST_PAIRS
    ):
        return NotImplemented
    overlaps: Any = ops.box_iou(*(boxes.astype(np.float64) for boxes in both))
    iou = overlaps.astype(np.float32)
    np.fmax(iou, np.float32(0), out=iou)  # NaN, where there is no union or none that is finite: 0
    iou += np.float32(0)  # -0.0, of a negative union: 0.0
    return iou


_INSTEAD_OF: dict[str, Callable[..., Any]] = {
    "detection.utils.iou_and_nms:box_non_max_suppression": _box_non_max_suppression,
    "detection.utils.iou_and_nms:box_iou_batch": _box_iou_batch,
}

_SUPERVISION = Library("supervision", _INSTEAD_OF, oldest=(0, 30))
