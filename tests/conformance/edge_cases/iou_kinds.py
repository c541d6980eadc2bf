"""Hand-worked cases of generalized, distance and complete IoU, their losses and gradients."""

from __future__ import annotations

import numpy as np
import torch

from ..build import tensor
from ..harness import Args
from .table import INF, NAN, SQUARE, edge, f32, f64

BESIDE, AWAY = [4, 0, 6, 2], [6, 0, 8, 2]
POINT, LINE = [1, 1, 1, 1], [0, 0, 2, 0]
INVERTED = [2, 0, 0, 2]


def _boxes(boxes1: list, boxes2: list, dtype: torch.dtype = torch.float32, **scalars: object) -> Args:
    return {"boxes1": tensor(boxes1, dtype), "boxes2": tensor(boxes2, dtype)} | scalars


def _backward(kind: str, eps: float, second: list, grad: float, *size: int) -> Args:
    return _boxes([SQUARE], [second], kind=kind, eps=eps) | {"grad": tensor(np.full(size, grad))}


NOT_FINITE = [[0, NAN, 2, 2], [0, 0, INF, 2], [-INF, 0, 2, 2]]

PAIRS = (
    # With the 2x2 square: itself, 1 - (4 - 4) / 4; half of it, 1/2 - (4 - 4) / 4; a corner, 1/7 - (9 - 7) / 9; an edge
    # in common, 0 - (8 - 8) / 8; as far away as it is wide, 0 - (12 - 8) / 12.
    edge(
        "generalized_box_iou",
        "plain",
        _boxes([SQUARE], [SQUARE, [0, 0, 2, 1], [1, 1, 3, 3], [2, 0, 4, 2], BESIDE]),
        np.array([[1, 0.5, np.float32(1 / 7) - np.float32(2 / 9), 0, -1 / 3]], np.float32),
    ),
    edge("generalized_box_iou", "f64", _boxes([SQUARE], [BESIDE], torch.float64), f64([[-1 / 3]])),
    # A hull that is the square, and 4 - (4 + 0) of it is left; a hull without area.
    edge("generalized_box_iou", "no-area", _boxes([SQUARE, POINT], [POINT]), f32([[0], [NAN]])),
    edge("generalized_box_iou", "not-finite", _boxes([SQUARE], NOT_FINITE), f32([[NAN] * 3])),
    # Sides of the hull are 0, not -2: (0 + 8) / 0 is taken from 0 / -8.
    edge("generalized_box_iou", "both-inverted", _boxes([INVERTED], [INVERTED]), f32([[-INF]])),
    edge("generalized_box_iou", "int64", _boxes([SQUARE], [BESIDE], torch.int64), f32([[-1 / 3]])),
    # Centres (1, 1) and (5, 1), a hull of 6 x 2: 16 / (36 + 4). Half of it: 1/2 - 1/4 / (4 + 4). Itself.
    edge(
        "distance_box_iou",
        "plain",
        _boxes([SQUARE], [BESIDE, [0, 0, 2, 1], SQUARE], eps=0.0),
        f32([[-0.4, 0.46875, 1]]),
    ),
    # 16 / (40 + 24).
    edge("distance_box_iou", "eps", _boxes([SQUARE], [BESIDE], eps=24.0), f32([[-0.25]])),
    edge("distance_box_iou", "no-area", _boxes([SQUARE, POINT], [POINT], eps=0.0), f32([[0], [NAN]])),
    edge("distance_box_iou", "not-finite", _boxes([SQUARE], NOT_FINITE), f32([[NAN] * 3])),
    # Shapes are equal: the distance IoU. Without eps, alpha would be 0 / 0 of the square with itself.
    edge("complete_box_iou", "same-shape", _boxes([SQUARE], [SQUARE]), f32([[1]])),
    edge("complete_box_iou", "same-shape-apart", _boxes([SQUARE], [BESIDE], eps=24.0), f32([[-0.25]])),
    edge("complete_box_iou", "not-finite", _boxes([SQUARE], NOT_FINITE), f32([[NAN] * 3])),
    # A line: angle pi / 2, so v = 4 / pi^2 * (pi / 4)^2 = 1/4, alpha = 1/4 / (1 + 1/4), and the distance 1 / 8. A point
    # has no angle.
    edge(
        "complete_box_iou",
        "line-and-point",
        _boxes([SQUARE], [LINE, POINT], torch.float64, eps=0.0),
        f64([[-1 / 8 - 0.2 * 0.25, NAN]]),
    ),
    *(
        edge(f"{kind}_box_iou", "none", _boxes([SQUARE], np.zeros((0, 4))), f32(np.zeros((1, 0))))
        for kind in ("generalized", "distance", "complete")
    ),
)

LOSSES = (
    # 1 - 1, 1 - 1/2, 1 + 1/3.
    edge(
        "generalized_box_iou_loss",
        "plain",
        _boxes([SQUARE] * 3, [SQUARE, [0, 0, 2, 1], BESIDE], eps=0.0),
        f32([0, 0.5, 4 / 3]),
    ),
    # 4 / (4 + 4) - 0 / (4 + 4); 0 / 12 - (12 - 8) / (12 + 4).
    edge("generalized_box_iou_loss", "eps", _boxes([SQUARE] * 2, [SQUARE, BESIDE], eps=4.0), f32([0.5, 1.25])),
    edge("generalized_box_iou_loss", "points", _boxes([POINT], [POINT]), f32([1])),
    # The hull is -2 x 2: 1 - (0 / -8 - (-4 + 8) / -4).
    edge("generalized_box_iou_loss", "both-inverted", _boxes([INVERTED], [INVERTED], eps=0.0), f32([0])),
    # 1 + 16 / (40 + 24); 1 - 4 / (4 + 4).
    edge("distance_box_iou_loss", "eps", _boxes([SQUARE], [BESIDE], eps=24.0), f32([1.25])),
    edge("distance_box_iou_loss", "same", _boxes([SQUARE], [SQUARE], eps=4.0), f32([0.5])),
    edge("distance_box_iou_loss", "points", _boxes([POINT], [POINT]), f32([1])),
    edge("complete_box_iou_loss", "same-shape", _boxes([SQUARE], [BESIDE], eps=24.0), f32([1.25])),
    edge("complete_box_iou_loss", "points", _boxes([POINT], [POINT]), f32([NAN])),
    edge(
        "complete_box_iou_loss", "line", _boxes([SQUARE], [LINE], torch.float64, eps=0.0), f64([1 + 1 / 8 + 0.2 * 0.25])
    ),
    *(
        edge(f"{kind}_box_iou_loss", "not-finite", _boxes([SQUARE] * 3, NOT_FINITE), f32([NAN] * 3))
        for kind in ("generalized", "distance", "complete")
    ),
    *(
        edge(f"{kind}_box_iou_loss", "none", _boxes(np.zeros((0, 4)), np.zeros((0, 4))), f32([]))
        for kind in ("generalized", "distance", "complete")
    ),
)

# Two squares four apart: the union U is 8, the hull H 8 x 2 = 16. d giou = U' / H - H' * U / H^2 = U' / 16 - H' / 32.
# x1: U' = -2, H' = -2; y1: U' = -2, H' = -8 / 2, a tie; x2: U' = 2, H' = 0; y2: U' = 2, H' = 8 / 2.
# d diou = -R' / E + R * E' / E^2 with R = 36, E = 68 + 60 = 128. x1: R' = -6, E' = -2 * 8: 6 / 128 - 36 / 1024; y1:
# E' = -2 * 2 / 2: -72 / 128^2; x2: 6 / 128; y2 mirrors y1. Shapes are equal: the same of ciou.
APART = (
    edge(
        "pairwise_iou_backward",
        "generalized-apart",
        _backward("generalized", 0.0, AWAY, 16, 1, 1),
        f32([[-1, 0, 2, 0]]),
        f32([[-2, 0, 1, 0]]),
    ),
    edge(
        "iou_loss_backward",
        "generalized-apart",
        _backward("generalized", 0.0, AWAY, 16, 1),
        f32([[1, -0.0, -2, -0.0]]),
        f32([[2, -0.0, -1, -0.0]]),
    ),
    *(
        edge(
            "pairwise_iou_backward",
            f"{kind}-apart",
            _backward(kind, 60.0, AWAY, 1024, 1, 1),
            f32([[12, -4.5, 48, 4.5]]),
            f32([[-48, -4.5, -12, 4.5]]),
        )
        for kind in ("distance", "complete")
    ),
    *(
        edge(
            "iou_loss_backward",
            f"{kind}-apart",
            _backward(kind, 60.0, AWAY, 1024, 1),
            f32([[-12, 4.5, -48, -4.5]]),
            f32([[48, 4.5, 12, -4.5]]),
        )
        for kind in ("distance", "complete")
    ),
)

# An edge in common passes nothing through the intersection: R = 4, E = 20 + 44 = 64. x1: 2 / 64 - 4 * 8 / 64^2; y1:
# -4 * (2 * 2 / 2) / 64^2; x2: 2 / 64.
TOUCHING = (
    edge(
        "pairwise_iou_backward",
        "touching-x",
        _backward("distance", 44.0, [2, 0, 4, 2], 512, 1, 1),
        f32([[12, -1, 16, 1]]),
        f32([[-16, -1, -12, 1]]),
    ),
    edge(
        "pairwise_iou_backward",
        "touching-y",
        _backward("distance", 44.0, [0, 2, 2, 4], 512, 1, 1),
        f32([[-1, 12, 1, 16]]),
        f32([[-1, -16, 1, -12]]),
    ),
)

CASES = (*PAIRS, *LOSSES, *APART, *TOUCHING)
