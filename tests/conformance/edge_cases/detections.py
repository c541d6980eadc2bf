"""Hand-worked cases of detections."""

from __future__ import annotations

import torch

from ..build import ints, tensor
from ..harness import Args
from .table import (
    APART,
    HALF,
    INF,
    NAN,
    PAD,
    SQUARE,
    TALL,
    TEN,
    edge,
    f32,
    i64,
)


def _detect(logits: list, proposals: list, **scalars: object) -> Args:
    classes = len(logits[0])
    return {
        "class_logits": tensor([logits]),
        "box_deltas": torch.zeros(1, len(logits), 4 * classes),
        "proposals": tensor([proposals]),
        "counts": ints(len(logits)),
        "image_sizes": tensor([[100, 100]]),
    } | scalars


DETECTIONS = (
    # Two equal logits: each 1/2. The two boxes tie; IoU 1/2 > 0.3: the lower index stays.
    edge(
        "detections",
        "tie",
        _detect([[0, 0], [5, 5]], HALF, max_detections=2),
        f32([[SQUARE, PAD]]), f32([[0.5, 0]]), i64([[1, -1]]), i64([[0, -1]]), i64([1]),
    ),
    # A score equal to the threshold does not pass.
    edge(
        "detections",
        "at-score-threshold",
        _detect([[0, 0]], [SQUARE], score_threshold=0.5, max_detections=1),
        f32([[PAD]]), f32([[0]]), i64([[-1]]), i64([[-1]]), i64([0]),
    ),
    # IoU equal to the threshold does not suppress.
    edge(
        "detections",
        "at-iou-threshold",
        _detect([[0, 0], [0, 0]], HALF, iou_threshold=0.5, max_detections=2),
        f32([HALF]), f32([[0.5, 0.5]]), i64([[1, 1]]), i64([[0, 1]]), i64([2]),
    ),
    # Four classes of score 1/4, three of them objects: one box, three detections in class order; two of them fit.
    edge(
        "detections",
        "classes-of-one-box",
        _detect([[0, 0, 0, 0]], [TEN], max_detections=2),
        f32([[TEN, TEN]]), f32([[0.25, 0.25]]), i64([[1, 2]]), i64([[0, 0]]), i64([2]),
    ),
    # A NaN logit takes the whole row out, also for its other classes; so does +inf (inf - inf).
    edge(
        "detections",
        "NaN",
        _detect([[0, NAN, 0], [0, 0, INF], [-INF, 0, 0]], APART[:3], max_detections=3, score_threshold=0.4),
        # exp(-inf) = 0: the last row is 0, 1/2, 1/2.
        f32([[APART[2], APART[2], PAD]]), f32([[0.5, 0.5, 0]]), i64([[1, 2, -1]]), i64([[2, 2, -1]]), i64([2]),
    ),
    # Row 1 lies beyond the count.
    edge(
        "detections",
        "counts",
        _detect([[0, 0], [0, 0]], APART[:2], max_detections=2) | {"counts": ints(1)},
        f32([[APART[0], PAD]]), f32([[0.5, 0]]), i64([[1, -1]]), i64([[0, -1]]), i64([1]),
    ),
    # Class-agnostic: dx = 10 / 10 moves by one width.
    edge(
        "detections",
        "agnostic",
        _detect([[0, 0]], [TALL], max_detections=1) | {"box_deltas": tensor([[[10, 0, 0, 0]]])},
        f32([[[30, 20, 50, 60]]]), f32([[0.5]]), i64([[1]]), i64([[0]]), i64([1]),
    ),
    # Its own class's deltas: class 1 stays, class 2 moves by one width.
    edge(
        "detections",
        "per-class",
        _detect([[0, 0, 0, 0]], [TALL], max_detections=3)
        | {"box_deltas": tensor([[[7, 7, 7, 7, 0, 0, 0, 0, 10, 0, 0, 0, NAN, 0, 0, 0]]])},
        f32([[TALL, [30, 20, 50, 60], PAD]]), f32([[0.25, 0.25, 0]]), i64([[1, 2, -1]]), i64([[0, 0, -1]]), i64([2]),
    ),
    # The background last: class 0 is column 0, and has the first deltas; 1/4 of each, the background's not counted.
    edge(
        "detections",
        "background-last",
        _detect([[-INF, 0, 0, 0, 0]], [TALL], max_detections=4, background="last")
        | {"box_deltas": tensor([[[7, 7, 7, 7, 0, 0, 0, 0, 10, 0, 0, 0, NAN, 0, 0, 0]]])},
        f32([[TALL, [30, 20, 50, 60], PAD, PAD]]), f32([[0.25, 0.25, 0, 0]]), i64([[1, 2, -1, -1]]),
        i64([[0, 0, -1, -1]]), i64([2]),
    ),
)  # fmt: skip

CASES = (*DETECTIONS,)
