"""Hand-worked cases of gather_anchors."""

import torch

from .table import edge, f32

# Two anchors a cell, two cells side by side, of one number each; then one anchor in one cell. Anchors 0 to 3 are cell
# 0's two, then cell 1's: 1, 3, 2, 4; anchor 4 is the second map's.
_FIRST = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
_SECOND = torch.tensor([[[[5.0]]]])
# One cell, two anchors of two numbers each: 1, 2 and 3, 4.
_PAIRS = torch.tensor([1.0, 2, 3, 4]).reshape(1, 4, 1, 1)


def _indices(*rows: int) -> torch.Tensor:
    return torch.tensor([rows])


CASES = (
    edge(
        "gather_anchors",
        "cells-then-levels",
        {"maps": [_FIRST, _SECOND], "indices": _indices(0, 1, 2, 3, 4, -1), "values": 1},
        f32([[[1], [3], [2], [4], [5], [0]]]),
    ),
    edge(
        "gather_anchors",
        "pairs",
        {"maps": [_PAIRS], "indices": _indices(1, 0, 1), "values": 2},
        f32([[[3, 4], [1, 2], [3, 4]]]),
    ),
    # Anchor 1 is chosen twice, 10 + 30; anchor 4 once; the row of -1 is nobody's.
    edge(
        "gather_anchors_backward",
        "twice",
        {
            "maps": [_FIRST, _SECOND],
            "indices": _indices(1, 4, 1, -1),
            "values": 1,
            "grad": torch.tensor([[[10.0], [20.0], [30.0], [40.0]]]),
        },
        f32([[[[0, 0]], [[40, 0]]]]),
        f32([[[[20]]]]),
    ),
)
