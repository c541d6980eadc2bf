"""Bilinear samples of regions of maps, by RoIAlign's rules, where the sum of a bin's samples is not what is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MOST_VALUES = 1 << 18  # sampled at once: what follows stays in the cache


class Regions(NamedTuple):
    """Regions that have equally many samples, [gy, gx] in a bin."""

    rows: Tensor  # int64 [r], of the RoIs
    image: Tensor  # int64 [r]
    size: Tensor  # [r, 2], height and width in cells
    y: Tensor  # [r, PH, PW, gy * gx], of the samples in cells
    x: Tensor


def regions(
    rois: Tensor, channels: int, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[Regions]:
    """The samples of RoIs [R, 5], some RoIs at a time."""
    PH, PW = bins
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, size = corners[:, [1, 0]], corners[:, [3, 2]] - corners[:, [1, 0]]
    if not aligned:
        size = size.clamp(min=1)
    bin_size = size / size.new_tensor(bins)
    if sampling_ratio > 0:
        grids = torch.full_like(size, sampling_ratio, dtype=torch.int64)
    else:
        grids = bin_size.ceil().long().clamp(min=0)
    for gy, gx in grids.unique(dim=0).tolist():
        rows = (grids == grids.new_tensor((gy, gx))).all(1).nonzero()[:, 0]
        at_once = max(1, MOST_VALUES // max(1, channels * PH * PW * gy * gx))
        for part in rows.split(at_once):
            y = _coordinates(start[part, 0], bin_size[part, 0], PH, gy)[:, :, None, :, None]
            x = _coordinates(start[part, 1], bin_size[part, 1], PW, gx)[:, None, :, None, :]
            y, x = torch.broadcast_tensors(y, x)
            yield Regions(part, rois[part, 0].long(), size[part], y.flatten(3), x.flatten(3))


def _coordinates(start: Tensor, bin_size: Tensor, bins: int, samples: int) -> Tensor:
    """[r, bins, samples] along one axis."""
    each = torch.arange(bins, device=start.device)[:, None] * bin_size[:, None, None]
    within = (torch.arange(samples, device=start.device) + 0.5) * bin_size[:, None, None] / max(samples, 1)
    return start[:, None, None] + each + within


class Corners(NamedTuple):
    """The four cells around each of some points, upper left, upper right, lower left, lower right."""

    cells: Tensor  # int64 [4, ...], of a map's H * W
    weights: Tensor  # [4, ...]; 0 of a point further than a cell outside


def corners_of(y: Tensor, x: Tensor, height: int, width: int) -> Corners:
    """A point outside by less than a cell reads the border."""
    top, bottom, ly = _around(y, height)
    left, right, lx = _around(x, width)
    hy, hx = 1 - ly, 1 - lx
    rows, columns = (top.long() * width, bottom.long() * width), (left.long(), right.long())
    cells = torch.stack([row + column for row in rows for column in columns])
    weights = torch.stack([hy * hx, hy * lx, ly * hx, ly * lx])
    return Corners(cells, weights * _inside(y, x, height, width))


def slopes_of(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What the four corners' values are multiplied by to give the value's derivatives by y and by x, [4, ...] each.

    Where a point has been moved to the border, mmcv's derivative is still of the point as it was.
    """
    top, bottom, _ = _around(y, height)
    left, right, _ = _around(x, width)
    inside = _inside(y, x, height, width)
    along_y = torch.stack([x - right, left - x, right - x, x - left])
    along_x = torch.stack([y - bottom, bottom - y, top - y, y - top])
    return along_y * inside, along_x * inside


def _around(along: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cell before a point on an axis, the one after it, and how far from the first it is."""
    moved = along.clamp(0, cells - 1)
    before = moved.floor()
    return before, (before + 1).clamp(max=cells - 1), moved - before


def _inside(y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    return (y >= -1) & (y <= height) & (x >= -1) & (x <= width)


def read(maps: Tensor, image: Tensor, cells: Tensor) -> Tensor:
    """The cells [4, r, ...] of the regions' images, in maps [B, C, H, W]: [4, r, ..., C]."""
    where = image.view(-1, *[1] * (cells.dim() - 2)).expand(cells.shape[1:])
    return maps.flatten(2)[where, :, cells]


def add(grad: Tensor, image: Tensor, cells: Tensor, values: Tensor) -> None:
    """Adds values [4, r, ..., C] to those cells of grad [B, C, H, W], contiguous."""
    C, H, W = grad.shape[1:]
    where = (image.view(-1, *[1] * (cells.dim() - 2)) * (C * H * W) + cells).flatten()
    places = where[:, None] + torch.arange(C, device=grad.device) * (H * W)
    grad.view(-1).scatter_add_(0, places.flatten(), values.flatten())
