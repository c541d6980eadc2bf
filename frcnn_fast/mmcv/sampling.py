"""Bilinear samples of regions of maps, by RoIAlign's rules, where the sum of a bin's samples is not what is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_MOST_VALUES = 1 << 24  # sampled at once


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
        at_once = max(1, _MOST_VALUES // max(1, channels * PH * PW * gy * gx))
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
    along_y: Tensor  # [4, ...]: the value's derivative by y is the sum of these times the cells
    along_x: Tensor


def corners_of(y: Tensor, x: Tensor, height: int, width: int) -> Corners:
    """A point outside by less than a cell reads the border."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    inner_y, inner_x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = inner_y.floor(), inner_x.floor()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    ly, lx = inner_y - top, inner_x - left
    hy, hx = 1 - ly, 1 - lx
    rows, columns = (top, top, bottom, bottom), (left, right, left, right)
    cells = torch.stack([row.long() * width + column.long() for row, column in zip(rows, columns)])
    weights = torch.stack([hy * hx, hy * lx, ly * hx, ly * lx])
    # Where a point has been moved to the border, mmcv's derivative is still of the point as it was.
    along_y = torch.stack([x - right, left - x, right - x, x - left])
    along_x = torch.stack([y - bottom, bottom - y, top - y, y - top])
    return Corners(cells * inside, *(each * inside for each in (weights, along_y, along_x)))


def read(maps: Tensor, image: Tensor, cells: Tensor) -> Tensor:
    """The cells [4, r, ...] of the regions' images, in maps [B, C, H, W]: [4, r, ..., C]."""
    where = image.view(-1, *[1] * (cells.dim() - 2)).expand(cells.shape[1:])
    return maps.flatten(2)[where, :, cells]


def add(grad: Tensor, image: Tensor, cells: Tensor, values: Tensor) -> None:
    """Adds values [4, r, ..., C] to those cells of grad [B, C, H, W], contiguous."""
    C, H, W = grad.shape[1:]
    where = (image.view(-1, *[1] * (cells.dim() - 2)) * (C * H * W) + cells).flatten()
    places = where[:, None] + torch.arange(C, device=grad.device) * (H * W)
    grad.view(-1).index_add_(0, places.flatten(), values.flatten())
