"""Hand-worked cases of the sigmoid focal loss and its gradients."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..build import ints, tensor
from ..harness import Args
from .table import INF, NAN, edge, f32, f64

UNWEIGHTED = {"alpha": -1.0}
LOG2 = np.float32(math.log(2))
# Of x = 0, where p is 1/2: q is 1/2, the cross entropy log 2.
OBJECT = np.float32(0.25) * (np.float32(0.25) * LOG2)
OTHER = np.float32(0.75) * (np.float32(0.25) * LOG2)


def _elements(logits: list, targets: list, dtype: torch.dtype = torch.float32, **scalars: float) -> Args:
    return {"inputs": tensor(logits, dtype), "targets": tensor(targets, dtype)} | scalars


def _backward(logits: list, targets: list, dtype: torch.dtype = torch.float32, **scalars: float) -> Args:
    return _elements(logits, targets, dtype, **{"gamma": 2.0, **scalars}) | {"grad": tensor([2.0] * len(logits), dtype)}


CERTAIN = [INF, -INF, INF, -INF]  # twice right, twice wrong

FORWARD = (
    edge("sigmoid_focal_loss", "at-0", _elements([0, -0.0, 0], [1, 0, 0]), f32([OBJECT, OTHER, OTHER])),
    # q = 1/2, alpha_t = 1/8 + 3/8.
    edge("sigmoid_focal_loss", "soft", _elements([0], [0.5]), f32([0.5 * (0.25 * LOG2)])),
    edge("sigmoid_focal_loss", "f64", _elements([0], [0.5], torch.float64), f64([0.125 * math.log(2)])),
    # gamma 0: the cross entropy; gamma 1: q = 1/2 of it.
    edge("sigmoid_focal_loss", "gamma-0", _elements([0, 0], [0, 1], gamma=0.0) | UNWEIGHTED, f32([LOG2, LOG2])),
    # exp(-1000) is 0: p is 1 or 0, q too, and the cross entropy 1000 or 0.
    edge(
        "sigmoid_focal_loss",
        "far",
        _elements([1000, -1000, 1000, -1000], [1, 0, 0, 1]) | UNWEIGHTED,
        f32([0, 0, 1000, 1000]),
    ),
    # Half of it is right: q is 1/2, the cross entropy 500.
    edge("sigmoid_focal_loss", "far-soft", _elements([1000, -1000], [0.5, 0.5]) | UNWEIGHTED, f32([125, 125])),
    edge("sigmoid_focal_loss", "infinite", _elements(CERTAIN, [1, 0, 0, 1]), f32([0, 0, INF, INF])),
    *(
        edge(
            "sigmoid_focal_loss",
            f"infinite-{gamma}",
            _elements(CERTAIN, [1, 0, 0, 1], gamma=gamma) | UNWEIGHTED,
            f32([0, 0, INF, INF]),
        )
        for gamma in (0.0, 0.5)
    ),
    edge("sigmoid_focal_loss", "alpha-0", _elements([0, 0], [1, 0], alpha=0.0), f32([0, 0.25 * LOG2])),
    edge("sigmoid_focal_loss", "nan", _elements([NAN, 0, NAN], [1, NAN, 0]), f32([NAN] * 3)),
    edge("sigmoid_focal_loss", "none", _elements([], []), f32([])),
)

# At x = 0: d loss / dx = q * (2 * (1 - 2t) * p * n * log 2 + q * (p - t)) = -+(log 2 / 4 + 1/8).
SLOPE = np.float32(0.5) * (np.float32(0.5) * LOG2 + np.float32(0.25))

BACKWARD = (
    edge(
        "sigmoid_focal_loss_backward",
        "at-0",
        _backward([0, 0], [0, 1]) | UNWEIGHTED,
        f32([2 * SLOPE, -2 * SLOPE]),
    ),
    # Wrong and certain: the loss is |x|, whose slope is 1 or -1.
    *(
        edge(
            "sigmoid_focal_loss_backward",
            f"infinite-{gamma}",
            _backward(CERTAIN, [1, 0, 0, 1], gamma=gamma) | UNWEIGHTED,
            f32([0, 0, 2, -2]),
        )
        for gamma in (0.0, 0.5, 2.0, 3.0)
    ),
    edge(
        "sigmoid_focal_loss_backward",
        "nan",
        _backward([NAN, 0], [0, NAN], gamma=0.0) | UNWEIGHTED,
        f32([NAN, NAN]),
    ),
    edge("sigmoid_focal_loss_backward", "none", _backward([], []) | UNWEIGHTED, f32([])),
)


def _classes(targets: tuple[int, ...], weight: list | None, logits: float = 0.0) -> Args:
    return {
        "inputs": tensor(np.full((len(targets), 2), logits)),
        "targets": ints(*targets),
        "weight": None if weight is None else tensor(weight),
    }


# Rows of class 0, of class 1, and four of background.
TARGETS = (0, 1, 2, -1, 2**40, -(2**40))

CLASSES = (
    edge(
        "class_focal_loss",
        "at-0",
        _classes(TARGETS, None),
        f32([[OBJECT, OTHER], [OTHER, OBJECT], *[[OTHER, OTHER]] * 4]),
    ),
    # A weight is its row's, and the background has none.
    edge(
        "class_focal_loss",
        "weighted",
        _classes(TARGETS, [4.0, 0.5]),
        f32([[4 * OBJECT, 4 * OTHER], [OTHER / 2, OBJECT / 2], *[[OTHER, OTHER]] * 4]),
    ),
    edge("class_focal_loss", "nan-weight", _classes((1, 2), [1.0, NAN]), f32([[NAN, NAN], [OTHER, OTHER]])),
    edge(
        "class_focal_loss_backward",
        "weighted",
        _classes(TARGETS, [4.0, 0.5]) | {"gamma": 2.0, "grad": tensor(np.full((6, 2), 2.0))} | UNWEIGHTED,
        f32([[-8 * SLOPE, 8 * SLOPE], [SLOPE, -SLOPE], *[[2 * SLOPE, 2 * SLOPE]] * 4]),
    ),
)

CASES = (*FORWARD, *BACKWARD, *CLASSES)
