"""What a head says of anchors: its maps as tables, the rows of chosen anchors, and their gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def anchor_table(of_head: np.ndarray | Sequence[np.ndarray], values: int | None = None) -> np.ndarray:
    """What a head says of every anchor as [B, A], or with `values` numbers an anchor as [B, A, values]: the table
    itself, alone in a list too, or maps [B, k * values, H, W], one a level."""
    tables = [of_head] if isinstance(of_head, np.ndarray) else list(of_head)
    if tables[0].ndim < 4:
        return tables[0]
    rows = []
    for one in tables:
        B, channels, H, W = one.shape
        anchors = channels // (values or 1) * H * W
        rows.append(one.transpose(0, 2, 3, 1).reshape((B, anchors) if values is None else (B, anchors, values)))
    return np.concatenate(rows, axis=1)


def gather_anchors(maps: Sequence[np.ndarray], indices: np.ndarray, values: int) -> np.ndarray:
    """Rows [B, S, values] of the anchors of those indices [B, S]; 0 for an index of -1."""
    table = anchor_table(maps, values)
    rows = np.zeros((*indices.shape, values), table.dtype)
    for image, row in np.argwhere(indices >= 0):
        rows[image, row] = table[image, indices[image, row]]
    return rows


def gather_anchors_backward(
    grad: np.ndarray, indices: np.ndarray, map_shapes: Sequence[int], channels_last: Sequence[bool]
) -> list[np.ndarray]:
    """The maps' gradients, shapes (B, k * values, H, W) of one after the other, from those of the rows: sums in the
    order of the rows. channels_last: how the caller stores them."""
    B, _, values = grad.shape
    shapes = [tuple(map_shapes[4 * level : 4 * level + 4]) for level in range(len(channels_last))]
    sizes = [channels // values * H * W for _, channels, H, W in shapes]
    table = np.zeros((B, sum(sizes), values), grad.dtype)
    for image, row in np.argwhere(indices >= 0):
        table[image, indices[image, row]] += grad[image, row]
    maps, start = [], 0
    for (_, channels, H, W), size in zip(shapes, sizes, strict=True):
        maps.append(table[:, start : start + size].reshape(B, H, W, channels).transpose(0, 3, 1, 2))
        start += size
    return maps
