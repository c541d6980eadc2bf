"""Hand-worked cases of box_iou, nms, batched_nms, nms_padded, soft_nms and top_n."""

from __future__ import annotations

import numpy as np
import torch

from ..build import ints, tensor
from ..harness import Args
from .table import (
    APART,
    HALF,
    INF,
    NAN,
    SQUARE,
    TEN,
    THIRD,
    THREE_TENTHS,
    edge,
    f32,
    f64,
    i64,
)


def _iou(boxes1: list, boxes2: list, dtype: torch.dtype = torch.float32, **scalars: object) -> Args:
    return {"boxes1": tensor(boxes1, dtype), "boxes2": tensor(boxes2, dtype)} | scalars


BOX_IOU = (
    # With the 2x2 square: half of it, 2 / (4 + 2 - 2); a corner, 1 / (4 + 4 - 1); an edge in common, 0 / 8;
    # itself, 4 / 4.
    edge(
        "box_iou",
        "plain",
        _iou([SQUARE], [[0, 0, 2, 1], [1, 1, 3, 3], [2, 0, 4, 2], SQUARE]),
        f32([[1 / 2, 1 / 7, 0, 1]]),
    ),
    # 3 / (10 + 3 - 3), rounded to each precision.
    edge("box_iou", "three-tenths", _iou([[0, 0, 10, 1]], [[7, 0, 10, 1]]), f32([[0.3]])),
    edge("box_iou", "three-tenths-f64", _iou([[0, 0, 10, 1]], [[7, 0, 10, 1]], torch.float64), f64([[0.3]])),
    # A point: 0 / (4 + 0). Two points: 0 / 0.
    edge("box_iou", "no-area", _iou([SQUARE, [1, 1, 1, 1]], [[1, 1, 1, 1]]), f32([[0], [NAN]])),
    # Both sides inverted: the area is -2 * -2 = 4, the overlap max(0, 0 - 2) = 0: 0 / 8. One side inverted: the area
    # is -4: 0 / (4 - 4), 0 / (16 - 4), and with a point 0 / (0 - 4), which is a negative zero.
    edge(
        "box_iou",
        "inverted",
        _iou([[2, 2, 0, 0], [2, 0, 0, 2]], [SQUARE, [0, 0, 4, 4], [1, 1, 1, 1]]),
        f32([[0, 0, 0], [NAN, 0, -0.0]]),
    ),
    # The formula alone would give 4 / inf = 0 for the second.
    edge("box_iou", "not-finite", _iou([SQUARE], [[0, NAN, 2, 2], [0, 0, INF, 2], [-INF, 0, 2, 2]]), f32([[NAN] * 3])),
    # Areas of 1e40 overflow: inf / (inf + inf - inf) is NaN.
    edge("box_iou", "overflow", _iou([[0, 0, 1e20, 1e20]], [[0, 0, 1e20, 1e20]]), f32([[NAN]])),
    # Inclusive pixels: 1 pixel in a row of 2: 1 / (1 + 2 - 1). Rows that touch share no pixel: -1 + 1 = 0.
    edge(
        "box_iou",
        "legacy",
        _iou([[0, 0, 0, 0]], [[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], legacy=True),
        f32([[1 / 2, 0, 1]]),
    ),
    edge("box_iou", "int64", _iou([SQUARE], [[1, 1, 3, 3], [0, 0, 2, 1]], torch.int64), f32([[1 / 7, 1 / 2]])),
    # I = 2, union U = 4, and 16 * (I' U - I U') / U^2 = 4 I' - 2 U'. A tie shares I' in half.
    # First: x1: I' = -1/2, U' = -2 + 1/2; y1: I' = -1, U' = -2 + 1; x2 mirrors x1; y2: I' = 0, U' = 2.
    # Second: x1: I' = -1/2, U' = -1 + 1/2; y1: I' = -1, U' = -2 + 1; x2: mirrored; y2: I' = 2, U' = 2 - 2.
    edge(
        "box_iou_backward",
        "half",
        _iou([SQUARE], [[0, 0, 2, 1]], legacy=False) | {"grad": tensor([[16]])},
        f32([[1, -2, -1, -4]]),
        f32([[-1, -2, 1, 8]]),
    ),
    edge("box_iou", "none", _iou([SQUARE], np.zeros((0, 4))), f32(np.zeros((1, 0)))),
)


def _nms(boxes: list, scores: list, threshold: float, dtype: torch.dtype = torch.float32) -> Args:
    return {"boxes": tensor(boxes, dtype), "scores": tensor(scores, dtype), "iou_threshold": threshold}


NMS = (
    # Only an IoU strictly above the threshold suppresses.
    edge("nms", "half-at-half", _nms(HALF, [2, 1], 0.5), i64([0, 1])),
    edge("nms", "half-just-above", _nms(HALF, [2, 1], 0.49999997), i64([0])),
    # 0.5 - 2**-30 rounds to 0.5 in float32, not in float64.
    edge("nms", "threshold-is-rounded", _nms(HALF, [2, 1], 0.5 - 2**-30), i64([0, 1])),
    edge("nms", "threshold-f64", _nms(HALF, [2, 1], 0.5 - 2**-30, torch.float64), i64([0])),
    edge("nms", "third-at-third", _nms(THIRD, [2, 1], 1 / 3), i64([0, 1])),
    edge("nms", "three-tenths", _nms(THREE_TENTHS, [2, 1], 0.3), i64([0, 1])),
    edge("nms", "three-tenths-f64", _nms(THREE_TENTHS, [2, 1], 0.3, torch.float64), i64([0, 1])),
    edge("nms", "three-tenths-f16", _nms(THREE_TENTHS, [2, 1], 0.3, torch.float16), i64([0, 1])),
    edge("nms", "best-first", _nms(HALF, [1, 2], 0.4), i64([1])),
    edge("nms", "ties-by-index", _nms(APART, [1, 2, 1, 2], 0.5), i64([1, 3, 0, 2])),
    edge("nms", "tie-suppresses-the-later", _nms(HALF, [1, 1], 0.4), i64([0])),
    edge("nms", "zeros-tie", _nms(APART, [-0.0, 0.0, -0.0, 1], 0.5), i64([3, 0, 1, 2])),
    edge("nms", "infinite-scores", _nms(APART, [-INF, 0, INF, 1], 0.5), i64([2, 3, 1, 0])),
    edge("nms", "NaN-scores", _nms(APART, [NAN, 0, NAN, 1], 0.5), i64([3, 1])),
    # The best box is not finite: never kept, and it drops nothing.
    edge("nms", "box-not-finite", _nms([[0, 0, INF, 2], SQUARE, [0, NAN, 2, 2]], [3, 2, 1], 0.0), i64([1])),
    # Two equal points: 0/0 suppresses nothing. A point within a square: 0/4.
    edge("nms", "no-area", _nms([[1, 1, 1, 1], [1, 1, 1, 1], SQUARE], [1, 2, 3], 0.0), i64([2, 1, 0])),
    edge("nms", "inverted", _nms([[2, 2, 0, 0], SQUARE, [2, 2, 0, 0]], [3, 2, 1], 0.0), i64([0, 1, 2])),
    # Threshold 0: any overlap suppresses, an edge in common does not.
    edge("nms", "touching-at-zero", _nms([SQUARE, [2, 0, 4, 2], [1, 0, 3, 2]], [3, 2, 1], 0.0), i64([0, 1])),
    edge("nms", "identical", _nms([SQUARE] * 5, [1, 5, 5, 2, 3], 0.99), i64([1])),
    edge("nms", "identical-at-one", _nms([SQUARE] * 3, [1, 3, 2], 1.0), i64([1, 2, 0])),
    # IoU of neighbours 60/140, of the first and the third 20/180: the second is dropped, so the third stays.
    edge("nms", "chain", _nms([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], [3, 2, 1], 0.4), i64([0, 2])),
    edge("nms", "none", _nms(np.zeros((0, 4)), [], 0.5), i64([])),
    edge("nms", "one", _nms([SQUARE], [0], 0.5), i64([0])),
    edge("batched_nms", "other-class", _nms(HALF, [2, 1], 0.4) | {"idxs": ints(0, 1)}, i64([0, 1])),
    edge("batched_nms", "same-class", _nms(HALF, [2, 1], 0.4) | {"idxs": ints(-3, -3)}, i64([0])),
    # Classes that differ above bit 31 alone.
    edge("batched_nms", "wide-classes", _nms(HALF, [2, 1], 0.4) | {"idxs": ints(1, (1 << 32) + 1)}, i64([0, 1])),
)


def _padded(boxes: list, scores: list, threshold: float, max_output: int, **rest: object) -> Args:
    return {
        "boxes": tensor(boxes),
        "scores": tensor(scores),
        "iou_threshold": threshold,
        "max_output": max_output,
    } | rest


NMS_PADDED = (
    edge(
        "nms_padded",
        "counts",
        # Image 0 has no rows, image 1 one, image 2 all; the rows beyond the count score higher, yet do not exist.
        _padded([HALF] * 3, [[1, 2]] * 3, 0.4, 3, counts=ints(0, 1, 2)),
        i64([[-1, -1, -1], [0, -1, -1], [1, -1, -1]]),
        i64([0, 1, 1]),
    ),
    edge("nms_padded", "stops-at-max-output", _padded([APART], [[1, 2, 3, 4]], 0.5, 2), i64([[3, 2]]), i64([2])),
    edge(
        "nms_padded",
        "classes",
        # Row 1 shares no class with row 0, row 2 does: IoU 1 > 0.5.
        _padded([[SQUARE, SQUARE, SQUARE]], [[3, 2, 1]], 0.5, 3, class_ids=torch.tensor([[7, 8, 7]])),
        i64([[0, 1, -1]]),
        i64([2]),
    ),
    # Inclusive pixels: areas 9 and 6, 6 / (9 + 6 - 6) = 2/3; half-open it is 1/2.
    edge("nms_padded", "legacy", _padded([HALF], [[2, 1]], 0.6, 2, legacy=True), i64([[0, -1]]), i64([1])),
    edge("nms_padded", "not-legacy", _padded([HALF], [[2, 1]], 0.6, 2), i64([[0, 1]]), i64([2])),
)


def _soft(boxes: list, scores: list, max_output: int, **rest: object) -> Args:
    given = {"iou_threshold": 0.3, "sigma": 0.5, "score_threshold": 0.0, "method": "linear"} | rest
    return {"boxes": tensor([boxes]), "scores": tensor([scores]), "max_output": max_output} | given


SOFT_NMS = (
    # IoU 1/2: 0.5 * (1 - 1/2); apart from the third.
    edge(
        "soft_nms",
        "linear",
        _soft([*HALF, [9, 9, 10, 10]], [1, 0.5, 0.375], 4),
        i64([[0, 2, 1, -1]]),
        f32([[1, 0.375, 0.25, 0]]),
        i64([3]),
    ),
    # Only an IoU strictly above the threshold lowers.
    edge(
        "soft_nms",
        "linear-at-threshold",
        _soft(HALF, [1, 0.5], 2, iou_threshold=0.5),
        i64([[0, 1]]),
        f32([[1, 0.5]]),
        i64([2]),
    ),
    edge(
        "soft_nms",
        "hard",
        _soft(HALF, [1, 0.5], 2, method="hard"),
        i64([[0, -1]]),
        f32([[1, 0]]),
        i64([1]),
    ),
    edge(
        "soft_nms",
        "hard-at-threshold",
        _soft(HALF, [1, 0.5], 2, method="hard", iou_threshold=0.5),
        i64([[0, 1]]),
        f32([[1, 0.5]]),
        i64([2]),
    ),
    # The same box: (1 - 1) = 0 is not above 0. At sigma 1, exp(-1) is 0.36787944 in float32.
    edge("soft_nms", "linear-identical", _soft([SQUARE] * 2, [1, 0.5], 2), i64([[0, -1]]), f32([[1, 0]]), i64([1])),
    edge(
        "soft_nms",
        "gaussian-identical",
        _soft([SQUARE] * 2, [1, 1], 2, method="gaussian", sigma=1.0),
        i64([[0, 1]]),
        f32([[1, 0.36787944]]),
        i64([2]),
    ),
    # A tie from the start goes to the lower index. 0.5 * (1 - 1/2) = 0.25 ties with the third: the second comes first.
    edge("soft_nms", "ties", _soft(APART, [1, 2, 1, 2], 4), i64([[1, 3, 0, 2]]), f32([[2, 2, 1, 1]]), i64([4])),
    edge(
        "soft_nms",
        "tie-after-lowering",
        _soft([*HALF, [9, 9, 10, 10]], [1, 0.5, 0.25], 3),
        i64([[0, 1, 2]]),
        f32([[1, 0.25, 0.25]]),
        i64([3]),
    ),
    edge(
        "soft_nms",
        "tie-after-lowering-from-below",
        _soft([[9, 9, 10, 10], *HALF], [0.25, 1, 0.5], 3),
        i64([[1, 0, 2]]),
        f32([[1, 0.25, 0.25]]),
        i64([3]),
    ),
    # Out at 0.25, the score that it is lowered to, and at the start.
    edge(
        "soft_nms",
        "score-threshold",
        _soft(HALF, [1, 0.5], 2, score_threshold=0.25),
        i64([[0, -1]]),
        f32([[1, 0]]),
        i64([1]),
    ),
    edge(
        "soft_nms",
        "score-threshold-at-start",
        _soft(APART, [0.25, 0.5, 0.125, 0], 4, score_threshold=0.25),
        i64([[1, -1, -1, -1]]),
        f32([[0.5, 0, 0, 0]]),
        i64([1]),
    ),
    # Negative scores are below any threshold; NaN takes no part; infinity lowered by 1/2 stays infinite.
    edge(
        "soft_nms",
        "odd-scores",
        _soft([*HALF, [9, 9, 10, 10], TEN], [INF, INF, NAN, -1], 4),
        i64([[0, 1, -1, -1]]),
        f32([[INF, INF, 0, 0]]),
        i64([2]),
    ),
    # Infinity times (1 - 1) is NaN.
    edge("soft_nms", "infinity-to-NaN", _soft([SQUARE] * 2, [INF, INF], 2), i64([[0, -1]]), f32([[INF, 0]]), i64([1])),
    edge(
        "soft_nms",
        "box-not-finite",
        _soft([[0, 0, INF, 2], SQUARE, [0, NAN, 2, 2]], [3, 2, 1], 3),
        i64([[1, -1, -1]]),
        f32([[2, 0, 0]]),
        i64([1]),
    ),
    # Two equal points: 0/0 lowers nothing, by any method.
    edge(
        "soft_nms",
        "no-area",
        _soft([[1, 1, 1, 1]] * 2, [2, 1], 2, method="gaussian"),
        i64([[0, 1]]),
        f32([[2, 1]]),
        i64([2]),
    ),
    # Inclusive pixels: areas 9 and 6, IoU 2/3, as float32; 1 - 2/3 and 0.5 times it are exact from there.
    edge(
        "soft_nms",
        "legacy",
        _soft(HALF, [1, 0.5], 2, legacy=True),
        i64([[0, 1]]),
        f32([[1, 0.5 * (1 - np.float64(np.float32(2 / 3)))]]),
        i64([2]),
    ),
    edge("soft_nms", "stops", _soft(APART, [1, 2, 3, 4], 2), i64([[3, 2]]), f32([[4, 3]]), i64([2])),
    edge(
        "soft_nms",
        "counts",
        _soft(HALF, [1, 2], 2, counts=ints(1)),
        i64([[0, -1]]),
        f32([[1, 0]]),
        i64([1]),
    ),
    edge("soft_nms", "none", _soft(np.zeros((0, 4)), [], 1), i64([[-1]]), f32([[0]]), i64([0])),
)

TOP_N = (
    # Ties 2 before 3 and 4 before 5 (-0.0 equals 0.0, each keeps its sign); the NaN is not counted.
    edge(
        "top_n",
        "everything",
        {"scores": tensor([[1, NAN, 3, 3, -0.0, 0.0, INF, -INF]]), "n": 8},
        f32([[INF, 3, 3, 1, -0.0, 0.0, -INF, 0]]),
        i64([[6, 2, 3, 0, 4, 5, 7, -1]]),
        i64([7]),
    ),
    edge(
        "top_n",
        "tie-at-the-edge",
        {"scores": tensor([[5, 7, 5, 5]]), "n": 3},
        f32([[7, 5, 5]]),
        i64([[1, 0, 2]]),
        i64([3]),
    ),
    edge(
        "top_n",
        "n-beyond-N",
        {"scores": tensor([[2], [NAN]]), "n": 2},
        f32([[2, 0], [0, 0]]),
        i64([[0, -1], [-1, -1]]),
        i64([1, 0]),
    ),
    edge("top_n", "empty-rows", {"scores": torch.zeros(2, 0), "n": 1}, f32([[0], [0]]), i64([[-1], [-1]]), i64([0, 0])),
)

CASES = (*BOX_IOU, *NMS, *NMS_PADDED, *SOFT_NMS, *TOP_N)
