"""Anchors: the boxes that proposals start from, as a table or as a rule (Ren et al. 2015, section 3.1.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops._checks import check_float, check_positive, check_same, compute_dtype, describe

CONVENTIONS = ("torchvision", "detectron2", "legacy")
MAX_LEVELS = 8
DELTA_CLAMP = math.log(1000.0 / 16.0)  # of dw and dh before exp (torchvision, detectron2)

Level = tuple[Tensor, Sequence[int], "int | Sequence[int]"]


def generate_anchors(
    sizes: Sequence[float], ratios: Sequence[float], *, convention: str = "torchvision", base_size: int = 16
) -> Tensor:
    """The anchors of one cell: every size with every ratio.

    sizes are the square roots of the anchors' areas in pixels (the paper: 128, 256, 512), ratios are height / width (the
    paper: 0.5, 1, 2). Returns float32 [k, 4] on the CPU, (x1, y1, x2, y2) in pixels:

    - "torchvision": ratio by ratio, corners rounded half to even, centred on 0, half-open;
    - "detectron2": size by size, not rounded, centred on 0, half-open;
    - "legacy" (py-faster-rcnn): ratio by ratio, inclusive pixels around a base box of `base_size` pixels whose sides are
      rounded before they are scaled. Use `legacy=True` in the ops that follow.

    Raises ValueError for an unknown convention and for sizes or ratios that are not positive.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    for name, values in (("sizes", sizes), ("ratios", ratios)):
        if len(values) == 0 or not all(float(v) > 0 and math.isfinite(v) for v in values):
            raise ValueError(f"{name}: expected one or more positive numbers, got {values!r}")
    check_positive("base_size", base_size)
    return _cell_anchors([float(s) for s in sizes], [float(r) for r in ratios], convention, base_size)


def _cell_anchors(sizes: list[float], ratios: list[float], convention: str, base_size: int) -> Tensor:
    if convention == "torchvision":
        root, side = torch.tensor(ratios).sqrt(), torch.tensor(sizes)
        w, h = ((1.0 / root)[:, None] * side).flatten(), (root[:, None] * side).flatten()
        return (torch.stack([-w, -h, w, h], 1) / 2).round()
    rows = []
    if convention == "detectron2":
        for size in sizes:
            for ratio in ratios:
                width = math.sqrt(size * size / ratio)
                height = ratio * width
                rows.append((-width / 2, -height / 2, width / 2, height / 2))
    else:
        centre = 0.5 * (base_size - 1)
        for ratio in ratios:
            # Python's round, like NumPy's, takes halves to even.
            base_width = round(math.sqrt(base_size * base_size / ratio))
            base_height = round(base_width * ratio)
            for size in sizes:
                half_w = 0.5 * (base_width * (size / base_size) - 1)
                half_h = 0.5 * (base_height * (size / base_size) - 1)
                rows.append((centre - half_w, centre - half_h, centre + half_w, centre + half_h))
    return torch.tensor(rows, dtype=torch.float64).to(torch.float32)


class AnchorGrids:
    """Anchors of one or several feature levels as a rule: the kernels make each anchor from its index.

    levels: for each level its cell anchors (float tensor [k, 4]), its map size (height, width) and its stride in pixels
    (a number, or (y, x)). offset: shifts every cell's centre by offset x stride (detectron2: 0.0 or 0.5).

    Anchor ((y * width + x) * k + a) of a level is cell anchor a moved by ((x + offset) * stride_x, (y + offset) *
    stride_y); levels follow one another. At most 8 levels; the cell anchors lie on one device.
    """

    __slots__ = ("cells", "grid", "level_sizes", "num_anchors", "offset")

    def __init__(self, levels: Sequence[Level], *, offset: float = 0.0) -> None:
        if not 1 <= len(levels) <= MAX_LEVELS:
            raise ValueError(f"levels: expected 1 to {MAX_LEVELS} levels, got {len(levels)}")
        self.grid: list[int] = []
        self.level_sizes: list[int] = []
        for cell_anchors, size, stride in levels:
            check_float("cell_anchors", cell_anchors, "[k, 4]", 2, 4)
            height, width = (check_positive("grid_size", s, zero=True) for s in size)
            stride_y, stride_x = stride_pair(stride)
            self.grid += [height, width, cell_anchors.shape[0], stride_y, stride_x]
            self.level_sizes.append(height * width * cell_anchors.shape[0])
        self.cells = levels[0][0] if len(levels) == 1 else torch.cat([cells for cells, _, _ in levels])
        self.num_anchors = sum(self.level_sizes)
        self.offset = float(offset)

    def materialize(self) -> Tensor:
        """The anchors as a table [num_anchors, 4]."""
        from frcnn_fast.ops.anchor_decode import tile_anchors

        return tile_anchors(self.cells, self.grid, self.offset)


def stride_pair(stride: int | Sequence[int]) -> tuple[int, int]:
    """(y, x) of a stride given as one number or as a pair."""
    y, x = (stride, stride) if isinstance(stride, int) else stride
    return check_positive("stride", y), check_positive("stride", x)


def anchor_arguments(
    anchors: Tensor | AnchorGrids, like_name: str, like: Tensor, B: int, A: int | None
) -> tuple[Tensor, list[int], float, list[int]]:
    """What a registered op takes for `anchors`: the table or the cell anchors in the compute dtype of `like`, the grid
    (empty for a table), the offset; and the level sizes. A: the number of anchors the other inputs call for."""
    dtype = compute_dtype(like)
    if isinstance(anchors, AnchorGrids):
        check_same("anchors", anchors.cells, like_name, like, dtype=False)
        if A is not None and anchors.num_anchors != A:
            raise ValueError(
                f"anchors: the grids hold {anchors.num_anchors} anchors ({anchors.level_sizes} a level), "
                f"{like_name} {A}; give the map sizes of the levels that {like_name} came from"
            )
        return anchors.cells.to(dtype).contiguous(), anchors.grid, anchors.offset, anchors.level_sizes
    per_image = isinstance(anchors, Tensor) and anchors.dim() == 3
    check_float("anchors", anchors, "[A, 4] or [B, A, 4]", 3 if per_image else 2, 4)
    if (per_image and anchors.shape[0] != B) or (A is not None and anchors.shape[-2] != A):
        count = "A" if A is None else str(A)
        raise ValueError(f"anchors: expected [{count}, 4] or [{B}, {count}, 4], got {describe(anchors)}")
    check_same("anchors", anchors, like_name, like, dtype=False)
    return anchors.to(dtype).contiguous(), [], 0.0, [anchors.shape[-2]]


def explicit_anchors(anchors: np.ndarray, grid: Sequence[int], offset: float) -> np.ndarray:
    """The table that the arguments stand for, for the reference."""
    if not grid:
        return anchors
    tables: list[Any] = []
    start = 0
    for i in range(0, len(grid), 5):
        height, width, k, stride_y, stride_x = grid[i : i + 5]
        cells = anchors[start : start + k]
        tables.append(reference.grid_anchors(cells, (height, width), (stride_y, stride_x), offset=offset))
        start += k
    return np.concatenate(tables)
