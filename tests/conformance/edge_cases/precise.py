"""Hand-worked cases of prroi_pool and its gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..build import tensor
from ..harness import Args
from .table import INF, NAN, edge, f32

RAMP = torch.arange(5.0).repeat(5, 1).reshape(1, 1, 5, 5)  # the value is x
NUMBERED = torch.arange(16.0).reshape(1, 1, 4, 4)  # 4 y + x
ONES = torch.ones(1, 1, 4, 4)
PEAK = torch.zeros(1, 1, 3, 3)
PEAK[0, 0, 1, 1] = 1


def _pool(features: Tensor, rois: list, size: object = 1, **more: object) -> Args:
    return {"features": features, "rois": tensor(rois).reshape(-1, 5), "output_size": size} | more


def _grad(*values: float) -> dict[str, Tensor]:
    """Of one bin of each RoI."""
    return {"grad": tensor(values).reshape(-1, 1, 1, 1)}


def _numbers(*values: float) -> np.ndarray:
    return f32(values).reshape(-1, 1, 1, 1)


NOTHING = [[0, 2, 1, 2, 3], [0, 3, 1, 1, 3], [0, 1, 3, 3, 1], [-1, 0, 0, 2, 2], [0, INF, 0, 2, 2], [0, 0, NAN, 2, 2]]

CASES = (
    # Of a constant the constant: bins of 2 cells weigh 1/16, 7/16, 7/16, 1/16.
    edge("prroi_pool", "constant", _pool(3 * ONES, [[0, 0.5, 0.5, 2.5, 2.5]]), _numbers(3)),
    # Of a ramp the value at the bin's centre: at 0.5 + 1; of two bins at 0.5 + 0.5 and 0.5 + 1.5.
    edge("prroi_pool", "ramp", _pool(RAMP, [[0, 0.5, 1, 2.5, 3]]), _numbers(1.5)),
    edge("prroi_pool", "ramp-two-bins", _pool(RAMP, [[0, 0.5, 1, 2.5, 3]], (1, 2)), f32([[[[1, 2]]]])),
    # One cell across, between four cells and around one: 4 * 2.5 + 2.5; 4 * 2 + 2 (edges at half cells).
    edge("prroi_pool", "one-pixel", _pool(NUMBERED, [[0, 2, 2, 3, 3], [0, 1.5, 1.5, 2.5, 2.5]]), _numbers(12.5, 10)),
    # Within a cell: at (1.5, 1.5).
    edge("prroi_pool", "within-a-cell", _pool(NUMBERED, [[0, 1.25, 1.25, 1.75, 1.75]]), _numbers(7.5)),
    # The hat about 1, from 0.5 to 1.5: each half has its mean at 3/4 of its height, so 3/4 along each axis.
    edge("prroi_pool", "peak", _pool(PEAK, [[0, 0.5, 0.5, 1.5, 1.5]]), _numbers(0.5625)),
    # 8 / 16 ... 24 / 16 around cell (1, 1).
    edge("prroi_pool", "scale", _pool(NUMBERED, [[0, 8, 8, 24, 24]], spatial_scale=1 / 16), _numbers(5)),
    # From -1 to 0 the map rises from 0 to 1, mean 1/2; from 3 to 4 it falls, and from 4 on it is 0.
    edge(
        "prroi_pool",
        "partly-outside",
        _pool(ONES, [[0, -1, 0, 1, 1], [0, 3, 0, 5, 1], [0, 0, -1, 1, 1], [0, 0, 3, 1, 5]]),
        _numbers(0.75, 0.25, 0.75, 0.25),
    ),
    edge(
        "prroi_pool", "outside", _pool(ONES, [[0, -3, 0, -1, 1], [0, 4, 0, 6, 1], [0, 9, 9, 12, 12]]), _numbers(0, 0, 0)
    ),
    # No width, inverted both ways, a padded row, corners that are not finite: even where the map is NaN.
    edge("prroi_pool", "nothing", _pool(ONES * NAN, NOTHING), _numbers(0, 0, 0, 0, 0, 0)),
    # Column 3 is NaN; a box that ends at 2 does not touch it, one that goes on does.
    edge(
        "prroi_pool",
        "NaN",
        _pool(tensor([[[[1, 1, 1, NAN], [1, 1, 1, NAN]]]]), [[0, 0, 0, 2, 1], [0, 0, 0, 2.5, 1]]),
        _numbers(1, NAN),
    ),
    edge("prroi_pool", "none", _pool(ONES, [], 2), f32(np.zeros((0, 1, 2, 2)))),
    # The mean is (x1 + x2) / 2: 1/2 to either, nothing to y; the map's weights are (1/2, 1/2) x (1/2, 1, 1/2) / 2.
    edge(
        "prroi_pool_backward",
        "ramp",
        _pool(RAMP[:, :, :3, :3], [[0, 0, 1, 2, 2]]) | _grad(4),
        f32([[[[0, 0, 0], [0.5, 1, 0.5], [0.5, 1, 0.5]]]]),
        f32([[0, 2, 0, 2, 0]]),
    ),
    # Two bins, at x1 + 1/4 and x1 + 3/4 of the way: 1 * 3/4 + 2 * 1/4 and 1 * 1/4 + 2 * 3/4, times the scale 1/2. Their
    # weights are (1, 6, 1) / 8 about cells 1 and 2.
    edge(
        "prroi_pool_backward",
        "two-bins",
        _pool(RAMP, [[0, 1, 2, 5, 6]], (1, 2), spatial_scale=0.5) | {"grad": tensor([[[[8, 16]]]])},
        f32([[[[0] * 5, *([v * h for v in (1, 8, 13, 2, 0)] for h in (0.25, 0.5, 0.25)), [0] * 5]]]),
        f32([[0, 5, 0, 7, 0]]),
    ),
    # Along an axis the mean is 3/4, at either end the hat is 1/2 high, the side is 1: the low end moves it by 3/4 - 1/2
    # times the other axis' 3/4, the high end by the opposite.
    edge(
        "prroi_pool_backward",
        "peak",
        _pool(PEAK, [[0, 0.5, 0.5, 1.5, 1.5]]) | _grad(64),
        f32([[[[1, 6, 1], [6, 36, 6], [1, 6, 1]]]]),
        f32([[0, 12, 12, -12, -12]]),
    ),
    # The mean 3/4, at -1 the value is 0, at 1 it is 1, the side is 2: (3/4 - 0) / 2 and (1 - 3/4) / 2.
    edge(
        "prroi_pool_backward",
        "partly-outside",
        _pool(ONES[:, :, :2, :2], [[0, -1, 0, 1, 1]]) | _grad(8),
        f32([[[[2, 1], [2, 1]]]]),
        f32([[0, 3, 0, 1, 0]]),
    ),
    # Two RoIs add up, 1 + 2 shared by four cells; (4 y + x) at their centre moves by 1/2 and 2 with each corner.
    edge(
        "prroi_pool_backward",
        "overlap",
        _pool(NUMBERED[:, :, :2], [[0, 1, 0, 2, 1]] * 2) | _grad(1, 2),
        f32([[[[0, 0.75, 0.75, 0], [0, 0.75, 0.75, 0]]]]),
        f32([[0, 0.5, 2, 0.5, 2], [0, 1, 4, 1, 4]]),
    ),
    edge(
        "prroi_pool_backward",
        "nothing",
        _pool(ONES * NAN, NOTHING) | _grad(1, 1, 1, 1, INF, 1),
        f32(np.zeros((1, 1, 4, 4))),
        f32(np.zeros((6, 5))),
    ),
    edge("prroi_pool_backward", "none", _pool(ONES, []) | _grad(), f32(np.zeros((1, 1, 4, 4))), f32(np.zeros((0, 5)))),
)
