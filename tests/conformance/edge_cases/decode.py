"""Hand-worked cases of decode_clip, encode, the anchors and rpn_proposals."""

from __future__ import annotations

import numpy as np
import torch

from ..build import tensor
from ..harness import Args
from .table import (
    APART,
    INF,
    NAN,
    TALL,
    edge,
    f32,
    flag,
    i64,
)


def _decode(deltas: list, anchors: list, size: tuple[float, float] = (100, 100), **scalars: object) -> Args:
    return {"deltas": tensor([deltas]), "anchors": tensor(anchors), "image_sizes": tensor([size])} | scalars


DECODE = (
    # dx = 1 moves by one width, dy = 0.5 by half a height.
    edge(
        "decode_clip",
        "moves",
        _decode([[0, 0, 0, 0], [1, 0.5, 0, 0]], [TALL, TALL]),
        f32([[TALL, [30, 40, 50, 80]]]),
        flag([[True, True]]),
    ),
    # 10 / 10 = 1 width, 5 / 10 = half a height.
    edge(
        "decode_clip",
        "weights",
        _decode([[10, 5, 0, 0]], [TALL], weights=(10.0, 10.0, 5.0, 5.0)),
        f32([[[30, 40, 50, 80]]]),
        flag([[True]]),
    ),
    # The side 20 is compared with >=, after clipping: 20 - 10 = 10 is left of the second.
    edge(
        "decode_clip",
        "side-equals-minimum",
        _decode([[0] * 4] * 2, [TALL, [-10, 20, 10, 60]], min_size=20.0),
        f32([[TALL, [0, 20, 10, 60]]]),
        flag([[True, False]]),
    ),
    # 10 * 2 = 20 is met, 10 * 2.5 = 25 is not.
    edge(
        "decode_clip",
        "scaled-minimum",
        {
            "deltas": torch.zeros(2, 1, 4),
            "anchors": tensor([TALL]),
            "image_sizes": tensor([[100, 100]] * 2),
            "min_size": 10.0,
            "image_scales": tensor([2.0, 2.5]),
        },
        f32([[TALL], [TALL]]),
        flag([[True], [False]]),
    ),
    # Wholly outside: clipped to the corner (W, H) = (100, 50). A side of 0 is at least 0, not at least 1.
    edge(
        "decode_clip",
        "outside",
        _decode([[0] * 4], [[200, 200, 220, 220]], (50, 100)),
        f32([[[100, 50, 100, 50]]]),
        flag([[True]]),
    ),
    edge(
        "decode_clip",
        "outside-minimum-1",
        _decode([[0] * 4], [[200, 200, 220, 220]], (50, 100), min_size=1.0),
        f32([[[100, 50, 100, 50]]]),
        flag([[False]]),
    ),
    # NaN stays NaN in its axis alone.
    edge("decode_clip", "NaN", _decode([[NAN, 0, 0, 0]], [TALL]), f32([[[NAN, 20, NAN, 60]]]), flag([[False]])),
    # exp(-inf) = 0: a box without width at the centre, finite, hence valid.
    edge(
        "decode_clip", "minus-infinity", _decode([[0, 0, -INF, 0]], [TALL]), f32([[[20, 20, 20, 60]]]), flag([[True]])
    ),
    # 20 * inf without a clamp: -inf ... inf, clipped to the image, but judged before that.
    edge(
        "decode_clip",
        "infinity-not-clamped",
        _decode([[0, 0, INF, 0]], [TALL], clamp=INF),
        f32([[[0, 20, 100, 60]]]),
        flag([[False]]),
    ),
    # Clamped to 0: exp(0) = 1.
    edge("decode_clip", "clamped", _decode([[0, 0, INF, 9]], [TALL], clamp=0.0), f32([[TALL]]), flag([[True]])),
    # Inclusive pixels: (0, 0, 15, 15) is 16 wide with centre 8; decoded 8 - 8 ... 8 + 8. Its side is 16 - 0 + 1 = 17.
    # The second is clipped to W - 1 = 99: 99 - 90 + 1 = 10.
    edge(
        "decode_clip",
        "legacy",
        _decode([[0] * 4] * 2, [[0, 0, 15, 15], [90, 0, 105, 15]], legacy=True, min_size=17.0),
        f32([[[0, 0, 16, 16], [90, 0, 99, 16]]]),
        flag([[True, False]]),
    ),
    edge(
        "decode_clip",
        "none",
        _decode(np.zeros((0, 4)), np.zeros((0, 4))),
        f32(np.zeros((1, 0, 4))),
        flag(np.zeros((1, 0))),
    ),
    # x1 = cx + dx*w - w/2, x2 = cx + dx*w + w/2: d/d dx = w (g1 + g2) = 20 * 3, d/d dw = w/2 (g2 - g1) = 10 * 1.
    edge(
        "decode_clip_backward",
        "plain",
        _decode([[0] * 4], [TALL]) | {"grad": tensor([[[1, 0, 2, 0]]])},
        f32([[[60, 0, 10, 0]]]),
    ),
    # x1 = -10 is clipped: only x2 passes on: 20 * 2, 10 * 2.
    edge(
        "decode_clip_backward",
        "clipped",
        _decode([[0] * 4], [[-10, 20, 10, 60]]) | {"grad": tensor([[[1, 0, 2, 0]]])},
        f32([[[40, 0, 20, 0]]]),
    ),
    # Both sides lie on the border of an image 20 wide, neither is clipped: 20 * 3, 10 * 1.
    edge(
        "decode_clip_backward",
        "on-the-border",
        _decode([[0] * 4], [[0, 20, 20, 60]], (60, 20)) | {"grad": tensor([[[1, 0, 2, 0]]])},
        f32([[[60, 0, 10, 0]]]),
    ),
    # dw is clamped: no gradient in it.
    edge(
        "decode_clip_backward",
        "clamped",
        _decode([[0, 0, 1, 0]], [TALL], clamp=0.0) | {"grad": tensor([[[1, 0, 2, 0]]])},
        f32([[[60, 0, 0, 0]]]),
    ),
)

ENCODE = (
    # The same box; moved by half a width and a quarter height; no width; inverted.
    edge(
        "encode",
        "plain",
        {
            "gt_boxes": tensor([TALL, [20, 30, 40, 70], [20, 20, 20, 60], [30, 20, 10, 60]]),
            "anchors": tensor([TALL] * 4),
        },
        f32([[0, 0, 0, 0], [0.5, 0.25, 0, 0], [0, 0, -INF, 0], [0, 0, NAN, 0]]),
    ),
    # 10 * 0.5, 10 * 0.25; twice as wide: 5 * log 2.
    edge(
        "encode",
        "weights",
        {"gt_boxes": tensor([[10, 30, 50, 70]]), "anchors": tensor([TALL]), "weights": (10.0, 10.0, 5.0, 5.0)},
        f32([[5, 2.5, 3.4657359027997265, 0]]),
    ),
    # Inclusive pixels: one pixel at 0 (width 1, centre 0.5) against pixels 0 ... 1 (width 2, centre 1): -0.5 / 2.
    edge(
        "encode",
        "legacy",
        {"gt_boxes": tensor([[0, 0, 0, 1]]), "anchors": tensor([[0, 0, 1, 1]]), "legacy": True},
        f32([[-0.25, 0, -0.6931471805599453, 0]]),
    ),
)

ANCHORS = (
    # The published table of the paper's code.
    edge(
        "generate_anchors",
        "legacy-table",
        {"sizes": (128, 256, 512), "ratios": (0.5, 1.0, 2.0), "convention": "legacy"},
        f32([
            [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
            [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
            [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
        ]),
    ),
    # 128 / sqrt(1/2) = 181.02, half 90.51; 128 * sqrt(1/2) = 90.51, half 45.25. 45 / 2 = 22.5 goes to the even 22.
    edge("generate_anchors", "torchvision", {"sizes": (128,), "ratios": (0.5,)}, f32([[-91, -45, 91, 45]])),
    edge(
        "generate_anchors",
        "half-to-even",
        {"sizes": (45, 47), "ratios": (1.0,)},
        f32([[-22, -22, 22, 22], [-24, -24, 24, 24]]),
    ),
    # Sizes first. Ratio 4: 64 / 2 wide and 64 * 2 high, half of it 16 and 64.
    edge(
        "generate_anchors",
        "detectron2",
        {"sizes": (64, 32), "ratios": (1.0, 4.0), "convention": "detectron2"},
        f32([[-32, -32, 32, 32], [-16, -64, 16, 64], [-16, -16, 16, 16], [-8, -32, 8, 32]]),
    ),
    # Cells at x = 0 and 8, y = 0, moved by half a stride: (4, 2) and (12, 2).
    edge(
        "grid_anchors",
        "offset",
        {"cell_anchors": tensor([[-1, -2, 1, 2]]), "grid_size": (1, 2), "stride": (4, 8), "offset": 0.5},
        f32([[3, 0, 5, 4], [11, 0, 13, 4]]),
    ),
    # Row by row, every cell anchor at a cell before the next cell.
    edge(
        "grid_anchors",
        "order",
        {"cell_anchors": tensor([[0, 0, 1, 1], [0, 0, 2, 2]]), "grid_size": (2, 2), "stride": 10},
        f32([
            [0, 0, 1, 1], [0, 0, 2, 2], [10, 0, 11, 1],
            [10, 0, 12, 2], [0, 10, 1, 11], [0, 10, 2, 12],
            [10, 10, 11, 11], [10, 10, 12, 12],
        ]),
    ),
)  # fmt: skip


def _propose(scores: list, anchors: list, **scalars: object) -> Args:
    return {
        "scores": tensor([scores]),
        "deltas": torch.zeros(1, len(anchors), 4),
        "anchors": tensor(anchors),
        "image_sizes": tensor([[100, 100]]),
    } | scalars


THREE = SMALL, LARGE, SHIFTED = [0, 0, 4, 4], [20, 20, 60, 60], [20, 20, 60, 50]  # the last two: IoU 1200 / 1600

PROPOSALS = (
    # The best box is too small. Dropped before the top 1: the next is chosen; dropped after it: nothing is left.
    edge(
        "rpn_proposals",
        "before-top-n",
        _propose([3, 2, 1], THREE, pre_nms_top_n=1, post_nms_top_n=2, min_size=16.0, filter_order="before_top_n"),
        f32([[LARGE, [0] * 4]]), f32([[2, 0]]), i64([[1, -1]]), i64([1]),
    ),
    edge(
        "rpn_proposals",
        "after-top-n",
        _propose([3, 2, 1], THREE, pre_nms_top_n=1, post_nms_top_n=2, min_size=16.0, filter_order="after_top_n"),
        f32([[[0] * 4] * 2]), f32([[0, 0]]), i64([[-1, -1]]), i64([0]),
    ),
    # 0.75 > 0.7 suppresses within a level, not across levels; the merged order is by score, ties by anchor index.
    edge(
        "rpn_proposals",
        "one-level",
        _propose([1, 2, 2], THREE, pre_nms_top_n=3, post_nms_top_n=3),
        f32([[LARGE, SMALL, [0] * 4]]), f32([[2, 1, 0]]), i64([[1, 0, -1]]), i64([2]),
    ),
    edge(
        "rpn_proposals",
        "two-levels",
        _propose([1, 2, 2], THREE, pre_nms_top_n=3, post_nms_top_n=3, level_sizes=[2, 1]),
        f32([[LARGE, SHIFTED, SMALL]]), f32([[2, 2, 1]]), i64([[1, 2, 0]]), i64([3]),
    ),
    # An IoU of exactly the threshold stays.
    edge(
        "rpn_proposals",
        "at-threshold",
        _propose([2, 1], [LARGE, SHIFTED], pre_nms_top_n=2, post_nms_top_n=2, iou_threshold=0.75),
        f32([[LARGE, SHIFTED]]), f32([[2, 1]]), i64([[0, 1]]), i64([2]),
    ),
    # Top 1 of each of three levels, the best two of those.
    edge(
        "rpn_proposals",
        "post-top-n-over-levels",
        _propose([1, 5, 2, 9], APART, pre_nms_top_n=1, post_nms_top_n=2, level_sizes=[1, 2, 1]),
        f32([[APART[3], APART[1]]]), f32([[9, 5]]), i64([[3, 1]]), i64([2]),
    ),
)  # fmt: skip

CASES = (*DECODE, *ENCODE, *ANCHORS, *PROPOSALS)
