"""Hand-worked cases of assign_anchors, sample_anchors, rpn_targets and sample_rois."""

from __future__ import annotations

import torch
from torch import Tensor

from ..build import ints, tensor
from ..harness import Args
from .table import (
    FAR,
    INF,
    NAN,
    PAD,
    SQUARE,
    TEN,
    edge,
    f32,
    i8,
    i32,
    i64,
)


def _assign(anchors: list, objects: list, count: int | None = None, **rest: object) -> Args:
    boxes = tensor(objects).reshape(1, -1, 4)
    counts = ints(boxes.shape[1] if count is None else count)
    return {"anchors": tensor(anchors), "gt_boxes": boxes, "gt_counts": counts} | rest


def _rows(height: float) -> list:
    """A 10-wide anchor within TEN: IoU = height / 10."""
    return [0, 0, 10, height]


ASSIGN = (
    # 0.7 is enough for an object; 0.6 and 0.3 are neither; 0.2 is background. The perfect match is only the first.
    edge(
        "assign_anchors",
        "thresholds",
        _assign([TEN, _rows(7), _rows(6), _rows(3), _rows(2)], [TEN]),
        i8([[1, 1, -1, -1, 0]]), i32([[0, 0, -1, -1, -1]]),
    ),
    # Below every threshold, 0.4 is yet the best that the object has: both that tie are positive.
    edge(
        "assign_anchors",
        "ties-of-the-best",
        _assign([_rows(4), _rows(2), [0, 6, 10, 10]], [TEN]),
        i8([[1, 0, 1]]), i32([[0, -1, 0]]),
    ),
    edge(
        "assign_anchors",
        "no-low-quality",
        _assign([_rows(4), _rows(2), [0, 6, 10, 10]], [TEN], low_quality=False),
        i8([[-1, 0, -1]]), i32([[-1, -1, -1]]),
    ),
    # The first object overlaps no anchor: its best IoU is 0, which makes none positive.
    edge("assign_anchors", "object-alone", _assign([TEN, _rows(2)], [FAR, TEN]), i8([[1, 0]]), i32([[1, -1]])),
    # The anchor is the best of object 1 (0.5), but object 0 overlaps it more (0.6): it keeps object 0.
    edge(
        "assign_anchors",
        "keeps-its-own-best",
        _assign([[0, 0, 10, 10], [0, 0, 10, 6]], [[0, 0, 10, 6], [0, 5, 10, 10]]),
        # anchor 0: 60/100 and 50/100; anchor 1: 60/60 and 10 / (60 + 50 - 10).
        i8([[1, 1]]), i32([[0, 0]]),
    ),
    # With overwrite it is object 1's, whose best it is. Of two objects that have the same best, the last one's.
    edge(
        "assign_anchors",
        "overwrite",
        _assign([[0, 0, 10, 10], [0, 0, 10, 6]], [[0, 0, 10, 6], [0, 5, 10, 10]], overwrite=True),
        i8([[1, 1]]), i32([[1, 0]]),
    ),
    edge(
        "assign_anchors", "overwrite-equal-objects", _assign([TEN], [TEN, TEN], overwrite=True),
        i8([[1]]), i32([[1]]),
    ),
    # Not where object 1's best, 0.5, is below min_quality: it makes no object, and takes none.
    edge(
        "assign_anchors",
        "overwrite-below-min-quality",
        _assign(
            [[0, 0, 10, 10], [0, 0, 10, 6]], [[0, 0, 10, 6], [0, 5, 10, 10]],
            overwrite=True, min_quality=0.51, positive_iou=0.6,
        ),
        i8([[1, 1]]), i32([[0, 0]]),
    ),
    # 0.5 is enough for a min_quality of 0.5, and not for one of 0.51.
    edge("assign_anchors", "min-quality-exactly", _assign([_rows(5)], [TEN], min_quality=0.5), i8([[1]]), i32([[0]])),
    edge("assign_anchors", "below-min-quality", _assign([_rows(5)], [TEN], min_quality=0.51), i8([[-1]]), i32([[-1]])),
    # Two equal objects: the lower index.
    edge("assign_anchors", "equal-objects", _assign([TEN], [TEN, TEN]), i8([[1]]), i32([[0]])),
    edge("assign_anchors", "no-objects", _assign([TEN, FAR], [TEN], 0), i8([[0, 0]]), i32([[-1, -1]])),
    edge("assign_anchors", "no-room-for-objects", _assign([TEN, FAR], []), i8([[0, 0]]), i32([[-1, -1]])),
    # With no objects an anchor is background even where no IoU is below the threshold.
    edge("assign_anchors", "no-objects-negative-0", _assign([TEN], [], negative_iou=0.0), i8([[0]]), i32([[-1]])),
    # Nor where the only object is not finite: it takes no part.
    edge(
        "assign_anchors", "odd-object-negative-0", _assign([TEN], [[0, 0, INF, 10]], negative_iou=0.0),
        i8([[0]]), i32([[-1]]),
    ),
    # Only 0.0 >= positive_iou: an IoU of 0 is never positive; nor is it < 0, so that it is ignored.
    edge(
        "assign_anchors",
        "positive-0",
        _assign([FAR], [TEN], positive_iou=0.0, negative_iou=0.0),
        i8([[-1]]), i32([[-1]]),
    ),
    # An object without area or not finite: IoU 0, 0/0 (counted as 0) or none.
    edge(
        "assign_anchors",
        "odd-objects",
        _assign([[5, 5, 5, 5], TEN], [[5, 5, 5, 5], [0, 0, INF, 10], [0, NAN, 1, 1]]),
        i8([[0, 0]]), i32([[-1, -1]]),
    ),
    # An anchor that is not finite takes no part.
    edge("assign_anchors", "anchor-not-finite", _assign([[0, 0, INF, 10], TEN], [TEN]), i8([[-1, 1]]), i32([[-1, 0]])),
    # Reaching the border (10 <= 10) is inside; beyond it on any side is not. The perfect anchors beyond the border
    # take no part in the maximum, so that 0.5 is the object's best.
    edge(
        "assign_anchors",
        "straddling",
        _assign(
            [_rows(5), [-1, 0, 10, 10], [0, 0, 11, 10], [0, 0, 10, 11], [0, -1, 10, 10]],
            [TEN],
            image_sizes=tensor([[10, 10]]),
        ),
        i8([[1, -1, -1, -1, -1]]), i32([[0, -1, -1, -1, -1]]),
    ),
    # Inclusive pixels: x2 = 10 is the 11th column, outside of W = 10; x2 = 9 is inside.
    edge(
        "assign_anchors",
        "straddling-legacy",
        _assign([[0, 0, 10, 9], [0, 0, 9, 9]], [[0, 0, 9, 9]], image_sizes=tensor([[10, 10]]), legacy=True),
        i8([[-1, 1]]), i32([[-1, 0]]),
    ),
    # 70 of 100 lie on the crowd: ignored; 60 do not suffice. A crowd is no object.
    edge(
        "assign_anchors",
        "crowd-exactly",
        _assign([[0, 0, 10, 10], [1, 0, 11, 10]], [[0, 0, 7, 10]], crowd=torch.tensor([[True]])),
        i8([[-1, 0]]), i32([[-1, -1]]),
    ),
    # The share is of the anchor, not of the crowd box: 4 of 4.
    edge(
        "assign_anchors",
        "within-crowd",
        _assign([SQUARE], [TEN], crowd=torch.tensor([[True]])),
        i8([[-1]]), i32([[-1]]),
    ),
    # The best anchor of the object lies on a crowd: the next best becomes positive.
    edge(
        "assign_anchors",
        "crowd-hides-the-best",
        _assign([_rows(5), _rows(4)], [TEN, [0, 4, 10, 5]], crowd=torch.tensor([[False, True]]), crowd_overlap=0.2),
        # on the crowd: 10 of 50 = 0.2, and 0 of 40.
        i8([[-1, 1]]), i32([[-1, 0]]),
    ),
)  # fmt: skip


def _labels(*labels: int, **scalars: object) -> Args:
    return {"labels": torch.tensor([labels], dtype=torch.int8), "rng": ints(0, 0)} | scalars


def _only(label: int, *indices: int) -> Args:
    """600 anchors, all ignored but these."""
    labels = torch.full((1, 600), -1, dtype=torch.int8)
    labels[0, list(indices)] = label
    return {"labels": labels}


SAMPLE = (
    # All fit: positives ascending, negatives ascending, padding.
    edge(
        "sample_anchors",
        "all-fit",
        _labels(1, 0, -1, 0, 1, batch_size=6, positive_fraction=0.5),
        i64([[0, 4, 1, 3, -1, -1]]), i8([[1, 1, 0, 0, -1, -1]]), i64([[2, 2]]),
    ),
    edge(
        "sample_anchors",
        "no-positives-wanted",
        _labels(1, 0, -1, 0, 1, batch_size=4, positive_fraction=0.0),
        i64([[1, 3, -1, -1]]), i8([[0, 0, -1, -1]]), i64([[0, 2]]),
    ),
    edge(
        "sample_anchors",
        "ignored",
        _labels(-1, -1, batch_size=2, positive_fraction=0.5),
        i64([[-1, -1]]), i8([[-1, -1]]), i64([[0, 0]]),
    ),
    # First words of counters (0 ... 5, 0, 0, 0) under key 0: 6627e8d5 (published), f8e4cca4, 04faa329, c990ef29,
    # ef3dc354, 734893fb. Of the positives 2 has the smallest, of the negatives 5.
    edge(
        "sample_anchors",
        "smallest-keys",
        _labels(1, 1, 1, 0, 0, 0, batch_size=2, positive_fraction=0.5),
        i64([[2, 5]]), i8([[1, 0]]), i64([[1, 1]]),
    ),
    edge(
        "sample_anchors",
        "two-smallest-keys",
        _labels(1, 1, 1, 0, 0, 0, batch_size=4, positive_fraction=0.5),
        i64([[0, 2, 3, 5]]), i8([[1, 1, 0, 0]]), i64([[2, 2]]),
    ),
    # At step 39014 candidates 185 and 453 both have the word 7bd8dab5, at step 65143 candidates 279 and 500 both have
    # 643d61e0: the lower index wins the single place.
    edge(
        "sample_anchors",
        "equal-keys-of-negatives",
        _only(0, 185, 453) | {"rng": ints(0, 39014), "batch_size": 1, "positive_fraction": 0.0},
        i64([[185]]), i8([[0]]), i64([[0, 1]]),
    ),
    edge(
        "sample_anchors",
        "equal-keys-of-positives",
        _only(1, 279, 500) | {"rng": ints(0, 65143), "batch_size": 1, "positive_fraction": 1.0},
        i64([[279]]), i8([[1]]), i64([[1, 0]]),
    ),
    edge(
        "rpn_targets",
        "all-fit",
        _assign([_rows(2), TEN, _rows(5)], [FAR, TEN]) | {"rng": ints(0, 0), "batch_size": 4, "positive_fraction": 0.5},
        # anchor 1 is object 1's, anchor 0 is background, anchor 2 (0.5) is neither.
        i64([[1, 0, -1, -1]]), i8([[1, 0, -1, -1]]), f32([[[0] * 4] * 4]), i32([[1, -1, -1, -1]]), i64([[1, 1]]),
    ),
    edge(
        "rpn_targets",
        "targets",
        _assign([[0, 0, 10, 10]], [[2, 0, 12, 10]]) | {"rng": ints(0, 0), "batch_size": 2, "positive_fraction": 0.5},
        # IoU 80/120 is the object's best; (7 - 5) / 10.
        i64([[0, -1]]), i8([[1, -1]]), f32([[[0.2, 0, 0, 0], [0] * 4]]), i32([[0, -1]]), i64([[1, 0]]),
    ),
)  # fmt: skip


def _rois(proposals: list, objects: list, labels: list, **rest: object) -> Args:
    boxes, gts = tensor(proposals).reshape(1, -1, 4), tensor(objects).reshape(1, -1, 4)
    return {
        "proposals": boxes,
        "counts": ints(boxes.shape[1]),
        "gt_boxes": gts,
        "gt_labels": ints(*labels).reshape(1, -1),
        "gt_counts": ints(gts.shape[1]),
        "rng": ints(0, 0),
    } | rest


def _two_proposals(first: int, second: int) -> Tensor:
    """600 proposals of which only two are finite."""
    boxes = torch.full((1, 600, 4), NAN)
    boxes[0, first], boxes[0, second] = tensor(SQUARE), tensor(TEN)
    return boxes


ROIS = (
    # Proposal 0: 50/100 = 0.5 is an object; proposal 1: 0.4 is background; then the object itself as candidate 2.
    # Targets of proposal 0: the centre is 2.5 lower on a height of 5, 10 * 0.5; twice as high, 5 * log 2.
    edge(
        "sample_rois",
        "half",
        _rois([_rows(5), _rows(4)], [TEN], [9], batch_size=4, positive_fraction=0.5),
        f32([[_rows(5), TEN, _rows(4), PAD]]), i64([[9, 9, 0, -1]]),
        f32([[[0, 5, 0, 3.4657359027997265], PAD, PAD, PAD]]), i32([[0, 0, -1, -1]]), i64([[2, 1]]),
    ),
    # Without the objects, and without room for positives: int(3 * 0.3) = 0.
    edge(
        "sample_rois",
        "no-positives-wanted",
        _rois([_rows(5), _rows(4)], [TEN], [9], batch_size=3, positive_fraction=0.3, append_gt=False),
        f32([[_rows(4), PAD, PAD]]), i64([[0, -1, -1]]), f32([[PAD] * 3]), i32([[-1] * 3]), i64([[0, 1]]),
    ),
    # Background in [0.25, 0.5): 0.25 is in, 0.125 is not.
    edge(
        "sample_rois",
        "lower-bound",
        _rois([[0, 0, 8, 2], [0, 0, 8, 1]], [[0, 0, 8, 8]], [1], negative_iou_low=0.25, append_gt=False, batch_size=2),
        f32([[[0, 0, 8, 2], PAD]]), i64([[0, -1]]), f32([[PAD] * 2]), i32([[-1] * 2]), i64([[0, 1]]),
    ),
    # No objects: every proposal is background.
    edge(
        "sample_rois",
        "no-objects",
        _rois([SQUARE, TEN], [], [], batch_size=3),
        f32([[SQUARE, TEN, PAD]]), i64([[0, 0, -1]]), f32([[PAD] * 3]), i32([[-1] * 3]), i64([[0, 2]]),
    ),
    # Under stream 1 at step 8615 candidates 32 and 538 both have the word 54c91ed0: the lower index wins.
    edge(
        "sample_rois",
        "equal-keys",
        _rois([], [], [], batch_size=1, counts=ints(600), rng=ints(0, 8615))
        | {"proposals": _two_proposals(32, 538)},
        f32([[SQUARE]]), i64([[0]]), f32([[PAD]]), i32([[-1]]), i64([[0, 1]]),
    ),
    # No proposals: the object alone.
    edge(
        "sample_rois",
        "no-proposals",
        _rois([], [TEN], [4], batch_size=4),
        f32([[TEN, PAD, PAD, PAD]]), i64([[4, -1, -1, -1]]), f32([[PAD] * 4]), i32([[0, -1, -1, -1]]), i64([[1, 0]]),
    ),
    # A proposal on the crowd (25 of 25), one that is not finite, one beyond the count: none is a candidate. Nor is the
    # crowd appended.
    edge(
        "sample_rois",
        "nobody",
        _rois(
            [[0, 0, 5, 5], [0, 0, NAN, 5], TEN], [TEN], [4], crowd=torch.tensor([[True]]), batch_size=1, counts=ints(2)
        ),
        f32([[PAD]]), i64([[-1]]), f32([[PAD]]), i32([[-1]]), i64([[0, 0]]),
    ),
)  # fmt: skip

CASES = (*ASSIGN, *SAMPLE, *ROIS)
