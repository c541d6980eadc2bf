"""Anchors by grid, and the three arguments by which any anchors reach a kernel: `AnchorSource`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from frcnn_fast.ops._arrays import tensor_of
from frcnn_fast.ops._checks import check_float, check_same, compute_dtype, contiguous_in, describe
from frcnn_fast.ops._operator import Operator

MOST_LEVELS = 8


class AnchorGrids:
    """The anchors of one or several feature maps, made inside the kernels from their index.

    levels: for each map (cell_anchors, (height, width), stride): cell_anchors [k, 4], a tensor or an array, float32 or
    float64, as `generate_anchors` gives them; the map's size in cells; pixels between cells, (y, x) or one for both.
    offset: of all anchors, in strides (detectron2: 0 or 0.5). At most 8 levels, on one device.

    Levels follow each other; within a level, anchor a of cell (y, x) has index (y * width + x) * k + a. Nothing is
    stored but the cell anchors.
    """

    def __init__(
        self, levels: Sequence[tuple[Tensor, tuple[int, int], int | tuple[int, int]]], *, offset: float = 0.0
    ) -> None:
        if not 1 <= len(levels) <= MOST_LEVELS:
            raise ValueError(f"levels: expected 1 to {MOST_LEVELS}, got {len(levels)}")
        self.offset = float(offset)
        self.grid: list[int] = []  # height, width, anchors a cell, stride y, stride x; level after level
        self.level_sizes: list[int] = []
        cells: list[Tensor] = []
        for cell_anchors, grid_size, stride in levels:
            cell_anchors = tensor_of(cell_anchors, "levels")
            check_float("levels", cell_anchors, "[k, 4]", 2, 4)
            if cells:
                check_same("levels", cell_anchors, "the first level", cells[0])
            height, width = check_grid_size(grid_size)
            k = cell_anchors.shape[0]
            self.grid += [height, width, k, *check_stride(stride)]
            self.level_sizes.append(height * width * k)
            cells.append(cell_anchors)
        self.cells = cells[0] if len(cells) == 1 else torch.cat(cells)  # [sum k, 4]

    @property
    def num_anchors(self) -> int:
        return sum(self.level_sizes)

    def with_cells(self, change: Callable[[Tensor], Tensor]) -> AnchorGrids:
        """The same grids with other cell anchors, or the same ones on another device."""
        other = copy.copy(self)
        other.cells = change(self.cells)
        return other

    def materialize(self) -> Tensor:
        """All anchors, [num_anchors, 4] in pixels."""
        return grid_anchors_operator(self.cells.contiguous(), self.grid, self.offset)

    def at(self, indices: Tensor) -> Tensor:
        """The anchors of those indices (int64, any shape), [..., 4]: rows of `materialize()`, the same bits, at the
        cost of those asked for. An index must be one of the `num_anchors`."""
        device = self.cells.device
        fields = torch.tensor(self.grid, device=device).view(-1, 5)
        ends = (fields[:, 0] * fields[:, 1] * fields[:, 2]).cumsum(0)
        level = torch.bucketize(indices, ends, right=True)
        height, width, per_cell, stride_y, stride_x = fields[level].unbind(-1)
        local = indices - (ends[level] - height * width * per_cell)
        cell = local // per_cell
        first = fields[:, 2].cumsum(0)[level] - per_cell
        y = cell // width
        corner = torch.stack([(cell - y * width) * stride_x, y * stride_y], -1).to(self.cells.dtype)
        corner = corner + self.offset * torch.stack([stride_x, stride_y], -1).to(self.cells.dtype)
        return torch.cat([corner, corner], -1) + self.cells[first + local - cell * per_cell]

    def __repr__(self) -> str:
        rows = zip(*[iter(self.grid)] * 5)
        levels = ", ".join(f"{h}x{w}x{k} at stride ({sy}, {sx})" for h, w, k, sy, sx in rows)
        return f"AnchorGrids({levels}; offset {self.offset:g})"


def check_grid_size(grid_size: Sequence[int]) -> tuple[int, int]:
    """(height, width), both at least 0."""
    try:
        height, width = grid_size
    except (TypeError, ValueError):
        raise ValueError(f"grid_size: expected (height, width), got {grid_size!r}") from None
    if height < 0 or width < 0:
        raise ValueError(f"grid_size: expected (height, width) of at least 0, got {grid_size!r}")
    return height, width


def check_stride(stride: int | Sequence[int]) -> tuple[int, int]:
    """One whole number of pixels, or (y, x)."""
    pair = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(pair) != 2 or not all(int(s) == s and s > 0 for s in pair):
        raise ValueError(f"stride: expected a positive whole number or two (y, x), got {stride!r}")
    return int(pair[0]), int(pair[1])


class AnchorSource(NamedTuple):
    """An op's anchors as its schema takes them, next to each other: `_op(..., *AnchorSource.of(...), ...)`.

    Given anchors, [A, 4] or [B, A, 4], with an empty grid; or the cell anchors of a grid's levels, [sum k, 4], with
    (height, width, anchors a cell, stride y, stride x) of one level after the other, and the offset in strides.
    """

    anchors: Tensor
    anchor_grid: list[int]
    anchor_offset: float

    @classmethod
    def of(cls, anchors: Tensor | AnchorGrids, like: Tensor, B: int, A: int | None = None) -> AnchorSource:
        """Checks an op's `anchors` against its other inputs: `like` is one of them, of B images and, where A is given,
        A anchors. They arrive contiguous, in the compute type of `like`; halves are widened."""
        dtype = compute_dtype(like)
        if isinstance(anchors, AnchorGrids):
            check_same("anchors", anchors.cells, "the other inputs", like, dtype=False)
            if A is not None and anchors.num_anchors != A:
                raise ValueError(f"anchors: expected A = {A} of them in all, got {anchors.num_anchors}: {anchors}")
            return cls(contiguous_in(anchors.cells, dtype), anchors.grid, anchors.offset)
        if not isinstance(anchors, Tensor):
            raise TypeError(f"anchors: expected AnchorGrids or a tensor [A, 4] or [B, A, 4], got {describe(anchors)}")
        ndim = 3 if anchors.dim() == 3 else 2
        check_float("anchors", anchors, "[A, 4], [B, A, 4] or AnchorGrids", ndim, 4)
        check_same("anchors", anchors, "the other inputs", like, dtype=False)
        if compute_dtype(anchors) != dtype:
            wanted = str(dtype).removeprefix("torch.")
            raise TypeError(
                f"anchors: expected {wanted} elements, the precision of the other inputs, got {describe(anchors)}; "
                "convert one of them"
            )
        if (ndim == 3 and anchors.shape[0] != B) or (A is not None and anchors.shape[-2] != A):
            rows = "A" if A is None else f"A = {A}"
            raise ValueError(f"anchors: expected [A, 4] or [B, A, 4] with B = {B}, {rows}, got {describe(anchors)}")
        return cls(contiguous_in(anchors, dtype), [], 0.0)


def num_anchors(anchors: Tensor, anchor_grid: Sequence[int]) -> int:
    """A of an op's anchors."""
    if not anchor_grid:
        return anchors.shape[-2]
    return sum(h * w * k for h, w, k in zip(anchor_grid[0::5], anchor_grid[1::5], anchor_grid[2::5]))


grid_anchors_operator = Operator(
    "grid_anchors(Tensor anchors, SymInt[] anchor_grid, float anchor_offset) -> Tensor boxes",
    outputs=lambda a: (a.anchors.new_empty((num_anchors(a.anchors, a.anchor_grid), 4)),),
    oracle=lambda anchors: anchors,
    triton="anchor_decode.anchor_decode_triton:grid_anchors",
)
