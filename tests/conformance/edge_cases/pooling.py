"""Hand-worked cases of roi_pool, roi_align and multiscale_roi_align."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..build import tensor
from ..harness import Args
from .table import (
    INF,
    NAN,
    edge,
    f32,
)


def _numbered(height: int, width: int) -> Tensor:
    """A map whose cells hold their own index."""
    return torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)


def _pool(feature: Tensor, rois: list, size: object, **scalars: object) -> Args:
    return {"input": feature, "boxes": tensor(rois).reshape(-1, 5), "output_size": size} | scalars


# 7 rows in 2 bins of 3.5: 0 ... ceil(3.5) and floor(3.5) ... 7; 5 columns in 2 bins of 2.5: 0 ... 3 and 2 ... 5.
SEVEN_BY_FIVE = _pool(_numbered(7, 5), [[0, 0, 0, 4, 6]], 2)

ROI_POOL = (
    # The last cell of each bin: (3, 2), (3, 4), (6, 2), (6, 4).
    edge("roi_pool", "7x5-to-2x2", SEVEN_BY_FIVE, f32([[[[17, 19], [32, 34]]]])),
    # Corners at half cells go away from zero: 0.5 ... 1.5 is 1 ... 2 in columns and rows, -0.5 ... 0.5 is -1 ... 1.
    edge("roi_pool", "round-half-away", _pool(_numbered(4, 4), [[0, 0.5, 0.5, 1.5, 1.5]], 1), f32([[[[10]]]])),
    edge(
        "roi_pool",
        "round-half-away-negative",
        _pool(_numbered(4, 4), [[0, -0.5, -0.5, 0.5, 0.5]], 3),
        f32([[[[0, 0, 0], [0, 0, 1], [0, 4, 5]]]]),
    ),
    # Wholly outside, on both sides: empty bins.
    edge(
        "roi_pool",
        "outside",
        _pool(_numbered(4, 4) + 1, [[0, 10, 10, 12, 12], [0, -9, -9, -5, -5]], 1),
        f32([[[[0]]], [[[0]]]]),
    ),
    # Inverted: size max(1 - 3 + 1, 1) = 1 from cell 3 on.
    edge("roi_pool", "inverted", _pool(_numbered(4, 4), [[0, 3, 3, 1, 1]], 1), f32([[[[15]]]])),
    # Not rounded: 0.25 ... (1.5 + 1) is 2.25 long, in 2 bins of 1.125: floor(0.25) ... ceil(1.375) and floor(1.375) ...
    # ceil(2.5), so 0 ... 2 and 1 ... 3.
    edge(
        "roi_pool",
        "not-rounded",
        _pool(_numbered(4, 4), [[0, 0.25, 0.25, 1.5, 1.5]], 2, rounded=False),
        f32([[[[5, 6], [9, 10]]]]),
    ),
    # From low * 0.5 to (high + 1) * 0.5: 1 ... 2.5 is cells 1 and 2. Columns 1.25 ... 1.25 and 2 ... 0.5 are no width,
    # though a bin would begin in cell 1 and end behind it.
    edge(
        "roi_pool",
        "not-rounded-sides",
        _pool(
            _numbered(4, 4),
            [[0, 2, 2, 4, 4], [0, 2.5, 2.5, 1.5, 4], [0, 4, 2, 0, 4]],
            1,
            spatial_scale=0.5,
            rounded=False,
        ),
        f32([[[[10]]], [[[0]]], [[[0]]]]),
    ),
    # A padded row.
    edge(
        "roi_pool",
        "padded-row",
        _pool(_numbered(2, 2) + 1, [[-1, 0, 0, 1, 1], [0, 0, 0, 1, 1]], 1),
        f32([[[[0]]], [[[4]]]]),
    ),
    # 8 / 16 = 0.5 -> 1, 24 / 16 = 1.5 -> 2.
    edge("roi_pool", "scale", _pool(_numbered(4, 4), [[0, 8, 8, 24, 24]], 1, spatial_scale=1 / 16), f32([[[[10]]]])),
    # NaN is passed over, -inf is a value, NaN alone stays.
    edge(
        "roi_pool",
        "NaN",
        _pool(
            tensor([[[[NAN, 1], [2, NAN]], [[NAN, -INF], [NAN, NAN]], [[NAN, NAN], [NAN, NAN]]]]), [[0, 0, 0, 1, 1]], 1
        ),
        f32([[[[2]], [[-INF]], [[NAN]]]]),
    ),
    edge("roi_pool", "none", _pool(_numbered(2, 2), [], 2), f32(np.zeros((0, 1, 2, 2)))),
    # Each gradient goes to its bin's last cell.
    edge(
        "roi_pool_backward",
        "7x5-to-2x2",
        SEVEN_BY_FIVE | {"grad": tensor([[[[1, 2], [3, 4]]]])},
        f32([[[[0] * 5, [0] * 5, [0] * 5, [0, 0, 1, 0, 2], [0] * 5, [0] * 5, [0, 0, 3, 0, 4]]]]),
    ),
    # Not rounded: the last cells of 0 ... 2 and of 1 ... 3.
    edge(
        "roi_pool_backward",
        "not-rounded",
        _pool(_numbered(4, 4), [[0, 0.25, 0.25, 1.5, 1.5]], 2, rounded=False) | {"grad": tensor([[[[1, 2], [3, 4]]]])},
        f32([[[[0] * 4, [0, 1, 2, 0], [0, 3, 4, 0], [0] * 4]]]),
    ),
    # A tie goes to the first cell in row-major order; two RoIs add up: 1 + 2; an empty bin gives nothing.
    edge(
        "roi_pool_backward",
        "tie-and-overlap",
        _pool(torch.ones(1, 1, 2, 2), [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 9, 9, 9, 9]], 1)
        | {"grad": tensor([[[[1]]], [[[2]]], [[[4]]]])},
        f32([[[[3, 0], [0, 0]]]]),
    ),
    # NaN alone: no argmax, no gradient.
    edge(
        "roi_pool_backward",
        "NaN",
        _pool(tensor([[[[NAN, 1]]]]), [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0]], 1) | {"grad": tensor([[[[1]]], [[[2]]]])},
        f32([[[[0, 2]]]]),
    ),
)

RAMP = torch.arange(5.0).repeat(5, 1).reshape(1, 1, 5, 5)  # the value is x


def _constants() -> list[Tensor]:
    """Levels of strides 4 ... 32 that hold 1, 2, 3, 4."""
    return [torch.full((1, 1, 256 // s, 256 // s), float(i + 1)) for i, s in enumerate((4, 8, 16, 32))]


def _squares(*sides: int) -> Tensor:
    return tensor([[0, 0, 0, side, side] for side in sides])


SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]

NUMBERED_RAMP = _pool(RAMP, [[0, 1, 1, 3, 3]], 1)

ROI_ALIGN_MAX = (
    # Samples at 1.5 and 2.5 each way.
    edge("roi_align_max", "adaptive", NUMBERED_RAMP, f32([[[[2.5]]]])),
    # Of the samples at (1.5, 2.5) and (2.5, 2.5), equals, the first: a quarter to each of the four cells around it.
    edge(
        "roi_align_max_backward",
        "adaptive",
        NUMBERED_RAMP | {"grad": tensor([[[[4]]]])},
        f32([[[[0] * 5, [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0] * 5, [0] * 5]]]),
    ),
    # At x = 4.5 the last cell, 4 - 9; at 5.5 outside, 0, which is more; with RAMP + 1 it is less.
    edge("roi_align_max", "outside-wins", _pool(RAMP - 9, [[0, 4, 0, 6, 1]], 1), f32([[[[0]]]])),
    edge("roi_align_max", "outside-loses", _pool(RAMP + 1, [[0, 4, 0, 6, 1]], 1), f32([[[[5]]]])),
    # All 0: the first of the row's two samples, at x = -1.5, is outside, the second, at -0.5, reads the border.
    edge(
        "roi_align_max_backward",
        "outside-first",
        _pool(torch.zeros(1, 1, 3, 3), [[0, -2, 1, 0, 2]], 1) | {"grad": tensor([[[[1]]]])},
        f32([[[[0] * 3] * 3]]),
    ),
    # ... and the other way round, at x = 2.5 and 3.5, y = 1.5: the last column's rows 1 and 2.
    edge(
        "roi_align_max_backward",
        "outside-later",
        _pool(torch.zeros(1, 1, 3, 3), [[0, 2, 1, 4, 2]], 1) | {"grad": tensor([[[[2]]]])},
        f32([[[[0] * 3, [0, 0, 1], [0, 0, 1]]]]),
    ),
    # No samples (aligned, and no side): 0. A padded row: 0.
    edge("roi_align_max", "no-samples", _pool(RAMP - 9, [[0, 1, 1, 1, 1]], 1, aligned=True), f32([[[[0]]]])),
    edge("roi_align_max", "padded-row", _pool(RAMP + 1, [[-1, 1, 1, 3, 3]], 1), f32([[[[0]]]])),
    # Samples at x = 0.5, which NaN reaches, and 1.5 and 2.5, which it does not; alone, NaN stays.
    edge(
        "roi_align_max",
        "NaN",
        _pool(tensor([[[[NAN, 1, 2, 3, 4]] * 2]]), [[0, 0, 0, 3, 1], [0, 0, 0, 1, 1]], 1),
        f32([[[[2.5]]], [[[NAN]]]]),
    ),
    # -inf is a value.
    edge(
        "roi_align_max", "minus-infinity", _pool(tensor([[[[-INF] * 2] * 2]]), [[0, 0, 0, 1, 1]], 1), f32([[[[-INF]]]])
    ),
)

ROI_ALIGN = (
    # One sample in the middle of 1 ... 3: at 2; aligned: at 2 - 0.5.
    edge("roi_align", "middle", _pool(RAMP, [[0, 1, 1, 3, 3]], 1, sampling_ratio=1), f32([[[[2]]]])),
    edge(
        "roi_align",
        "middle-aligned",
        _pool(RAMP, [[0, 1, 1, 3, 3]], 1, sampling_ratio=1, aligned=True),
        f32([[[[1.5]]]]),
    ),
    # ceil(2 / 1) = 2 samples at 1.5 and 2.5 each way.
    edge("roi_align", "adaptive", _pool(RAMP, [[0, 1, 1, 3, 3]], 1), f32([[[[2]]]])),
    # A RoI of no size becomes 1x1 (1 ... 2, middle 1.5), unless aligned (middle 0.5).
    edge("roi_align", "no-size", _pool(RAMP, [[0, 1, 1, 1, 1]], 1, sampling_ratio=1), f32([[[[1.5]]]])),
    edge(
        "roi_align",
        "no-size-aligned",
        _pool(RAMP, [[0, 1, 1, 1, 1]], 1, sampling_ratio=1, aligned=True),
        f32([[[[0.5]]]]),
    ),
    # Adaptive and aligned: ceil(0) = 0 samples, the sum is 0.
    edge("roi_align", "no-samples", _pool(RAMP + 1, [[0, 1, 1, 1, 1]], 1, aligned=True), f32([[[[0]]]])),
    # Samples in x: at -1 (value 0 of the border cell, still inside), at 5 = W (the last cell, 4), at 5.5 (outside, 0).
    edge("roi_align", "border-left", _pool(RAMP + 1, [[0, -2, 0, 0, 4]], 1, sampling_ratio=1), f32([[[[1]]]])),
    edge("roi_align", "border-right", _pool(RAMP, [[0, 4, 0, 6, 4]], 1, sampling_ratio=1), f32([[[[4]]]])),
    edge("roi_align", "beyond", _pool(RAMP + 1, [[0, 5, 0, 6, 4]], 1, sampling_ratio=1), f32([[[[0]]]])),
    # Two samples in x, at 4.5 (value 4) and 5.5 (outside): both count: 4 / 2.
    edge("roi_align", "half-outside", _pool(RAMP, [[0, 4, 0, 6, 1]], 1), f32([[[[2]]]])),
    edge("roi_align", "padded-row", _pool(RAMP + 1, [[-1, 1, 1, 3, 3]], 1), f32([[[[0]]]])),
    # The sample lies on cell (2, 2): its gradient goes there; two RoIs add up.
    edge(
        "roi_align_backward",
        "on-a-cell",
        _pool(torch.zeros(1, 1, 3, 4), [[0, 1, 1, 3, 3]] * 2, 1, sampling_ratio=1)
        | {"grad": tensor([[[[1]]], [[[2]]]])},
        f32([[[[0] * 4, [0] * 4, [0, 0, 3, 0]]]]),
    ),
    # At (1.5, 1.5): a quarter to each of four cells.
    edge(
        "roi_align_backward",
        "between-cells",
        _pool(torch.zeros(1, 1, 3, 3), [[0, 1, 1, 2, 2]], 1, sampling_ratio=1) | {"grad": tensor([[[[4]]]])},
        f32([[[[0, 0, 0], [0, 1, 1], [0, 1, 1]]]]),
    ),
    # The value is x, so its slope is 1 between cells: at 2, half of it to either end; clamped to the first cell and on
    # the last one none; at 1 + 0.5 of a box held at one cell all of it to the left end; a padded row.
    edge(
        "roi_align_rois_backward",
        "ramp",
        _pool(
            RAMP,
            [[0, 1, 1, 3, 3], [0, -2, 0, 1, 4], [0, 3, 1, 5, 3], [0, 1, 1, 1.5, 3], [-1, 1, 1, 3, 3]],
            1,
            sampling_ratio=1,
        )
        | {"grad": tensor([4.0, 4, 4, 1, 4]).reshape(5, 1, 1, 1)},
        f32([[0, 2, 0, 2, 0], [0] * 5, [0] * 5, [0, 1, 0, 0, 0], [0] * 5]),
    ),
    # Two samples at 0.5 and 1.5, of which the left end moves 3/4 and 1/4, the right end the rest; half of each counts.
    # A map in x and 10 y: ten times that for the upper and the lower end. 2 cells a pixel: twice that.
    edge(
        "roi_align_rois_backward",
        "two-samples",
        _pool(RAMP + 10 * RAMP.mT, [[0, 0, 0, 1, 1]], 1, spatial_scale=2, sampling_ratio=2)
        | {"grad": tensor([[[[1]]]])},
        f32([[0, 1, 10, 1, 10]]),
    ),
    # Level 4 (stride 16) for a side of exactly 224, one level a factor of two, within the levels that there are.
    edge(
        "multiscale_roi_align",
        "levels",
        {
            "features": _constants(),
            "boxes": _squares(224, 223, 112, 111, 448, 447, 2, 2000),
            "spatial_scales": SCALES,
            "output_size": 1,
            "sampling_ratio": 1,
        },
        # The middle of the last, at 1000 / 32 = 31.25, lies beyond its 8x8 map.
        f32([3, 2, 2, 1, 4, 3, 1, 0]).reshape(8, 1, 1, 1),
    ),
    # A side of 8 lies on the finest level: at (4, 4) / 4 = cell (1, 1) of it.
    edge(
        "multiscale_roi_align_backward",
        "its-own-level",
        {
            "features": [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 1, 1)],
            "boxes": _squares(8),
            "spatial_scales": [1 / 4, 1 / 8],
            "output_size": 1,
            "sampling_ratio": 1,
            "grad": tensor([[[[5]]]]),
        },
        f32([[[[0, 0], [0, 5]]]]), f32([[[[0]]]]),
    ),
)  # fmt: skip

CASES = (*ROI_POOL, *ROI_ALIGN, *ROI_ALIGN_MAX)
