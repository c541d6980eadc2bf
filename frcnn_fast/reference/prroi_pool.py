"""Precise RoI pooling (Jiang et al. 2018, section 4.2): the mean of the map over each bin, as an integral.

Between its cells the map is interpolated bilinearly, beyond them it is 0: the value at (x, y) is the sum over all cells
of hat(x - column) * hat(y - row) * cell, hat(t) = max(0, 1 - |t|). The mean over a bin is then separable: a weight for
each row times a weight for each column, and so are its derivatives in the corners.

Along each axis, in the precision of `rois`, every operation rounded by itself: start = low * scale, length = high *
scale - start, size = length / bins; bin p reaches from start + p * size to start + (p + 1) * size. A RoI whose length
is not positive and finite along both axes pools nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from .roi_pool import TouchedCells, gradient_of_corners, image_of, sum_in_order


def _hat(t: np.floating) -> np.floating:
    below = type(t)(1) - abs(t)
    return below if below > 0 else type(t)(0)


class _Bin:
    """One bin along one axis: the cells first ... last that it touches, and for each its weight and (slopes) the
    derivatives of the weight in the two ends of the RoI, in cells.

    The bin low ... high touches the cells whose hats reach into it, from floor(low) to ceil(high), within the map. Of
    the segment between two cells it covers the fractions l ... r, whose mean m = (l + r) * 0.5 is where the integral's
    value lies: (r - l) * m of it goes to the far cell and (r - l) * (1 - m) to the near one. weight = (what comes from
    the segment before + what comes from the segment behind) / side, side = high - low; 0 where rounding leaves no side.
    """

    def __init__(self, start: np.floating, size: np.floating, p: int, bins: int, limit: int):
        dtype = type(start)
        self.low, self.high = start + dtype(p) * size, start + dtype(p + 1) * size
        self.side = self.high - self.low
        self.p, self.bins = p, bins
        self.first = int(np.floor(np.clip(self.low, 0, limit)))
        self.last = int(np.ceil(np.clip(self.high, -1, limit - 1)))
        self.cells = slice(self.first, self.last + 1)
        self.weights = np.array([self._weight(dtype(i)) for i in range(self.first, self.last + 1)], dtype)

    def _weight(self, cell: np.floating) -> np.floating:
        one = type(cell)(1)
        if not self.side > 0:
            return one - one
        (before, mean_before), (behind, mean_behind) = self._covers(cell - one), self._covers(cell)
        return (before * mean_before + behind * (one - mean_behind)) / self.side

    def _covers(self, cell: np.floating) -> tuple[np.floating, np.floating]:
        """Of the segment from that cell to the next: the fraction covered, and its mean."""
        zero, one = type(cell)(0), type(cell)(1)
        begin, end = max(self.low - cell, zero), min(self.high - cell, one)
        return (end - begin, (begin + end) * type(cell)(0.5)) if end > begin else (zero, zero)

    @cached_property
    def slopes(self) -> np.ndarray:
        """[2, cells] the weights' derivatives in the low and in the high end of the RoI.

        In the bin's own ends they are at_low / side and at_high / side, at_low = weight - hat(low - cell) and at_high =
        hat(high - cell) - weight. The low end of the RoI moves these by (bins - p) / bins and (bins - p - 1) / bins,
        the high end by p / bins and (p + 1) / bins: (at_low * (bins - p) + at_high * (bins - p - 1)) / (side * bins),
        (at_low * p + at_high * (p + 1)) / (side * bins); 0 where there is no side.
        """
        dtype = self.weights.dtype.type
        found = np.zeros((2, len(self.weights)), dtype)
        if self.side > 0:
            length = self.side * dtype(self.bins)
            for i, weight in enumerate(self.weights):
                cell = dtype(self.first + i)
                at_low, at_high = weight - _hat(self.low - cell), _hat(self.high - cell) - weight
                for end, moves in enumerate(((self.bins - self.p, self.bins - self.p - 1), (self.p, self.p + 1))):
                    found[end, i] = (at_low * dtype(moves[0]) + at_high * dtype(moves[1])) / length
        return found


def _bins(
    roi: np.ndarray, shape: Sequence[int], output_size: Sequence[int], spatial_scale: float
) -> tuple[list[_Bin], list[_Bin]] | None:
    """The bins along the rows and along the columns of a map [height, width]; None: the RoI pools nothing."""
    dtype = roi.dtype.type
    axes = []
    for low, high, bins, limit in zip(roi[1:3][::-1], roi[3:5][::-1], output_size, shape, strict=True):
        start = low * dtype(spatial_scale)
        length = high * dtype(spatial_scale) - start
        if not (limit > 0 and length > 0 and np.isfinite(length)):
            return None
        axes.append([_Bin(start, length / dtype(bins), p, bins, limit) for p in range(bins)])
    return axes[0], axes[1]


def prroi_pool(
    features: np.ndarray, rois: np.ndarray, output_height: int, output_width: int, spatial_scale: float = 1.0
) -> np.ndarray:
    """Means [R, C, PH, PW] of features [B, C, H, W] over the bins of each RoI.

    The sum over the touched cells in row-major order of (row weight * column weight) * value. NaN and infinity count in
    every touched cell.
    """
    batch, channels, height, width = features.shape
    output = np.zeros((len(rois), channels, output_height, output_width), features.dtype)
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            bins = _bins(roi, (height, width), (output_height, output_width), spatial_scale)
            if image < 0 or bins is None:
                continue
            for p, row in enumerate(bins[0]):
                for q, column in enumerate(bins[1]):
                    weights = row.weights[:, None] * column.weights[None, :]
                    cells = weights.astype(features.dtype) * features[image, :, row.cells, column.cells]
                    output[k, :, p, q] = sum_in_order(cells.reshape(channels, weights.size))
    return output


def prroi_pool_backward(
    grad: np.ndarray,
    rois: np.ndarray,
    input_shape: Sequence[int],
    channels_last: bool = False,
    spatial_scale: float = 1.0,
) -> np.ndarray:
    """Gradient of prroi_pool in its features, [B, C, H, W]: of each cell the sum of (row weight * column weight) *
    gradient in the order of RoIs, then bins. The layout that a kernel writes does not matter here."""
    batch, _, height, width = input_shape
    grad_features = np.zeros(input_shape, grad.dtype)
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            bins = _bins(roi, (height, width), grad.shape[2:], spatial_scale)
            if image < 0 or bins is None:
                continue
            for p, row in enumerate(bins[0]):
                for q, column in enumerate(bins[1]):
                    weights = (row.weights[:, None] * column.weights[None, :]).astype(grad.dtype)
                    grad_features[image, :, row.cells, column.cells] += weights * grad[k, :, p, q, None, None]
    return grad_features


def prroi_pool_rois_backward(
    grad: np.ndarray, features: np.ndarray, rois: np.ndarray, spatial_scale: float = 1.0
) -> np.ndarray:
    """Gradient of prroi_pool in its RoIs, [R, 5], 0 in the image's place. The sums' order: see gradient_of_corners."""
    batch, channels, height, width = features.shape
    grad_rois = np.zeros(rois.shape, grad.dtype)
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            bins = _bins(roi, (height, width), grad.shape[2:], spatial_scale)
            if image < 0 or bins is None or channels == 0:
                continue
            rows, columns = ([TouchedCells(b.cells, b.weights, b.slopes) for b in along] for along in bins)
            grad_rois[k, 1:] = gradient_of_corners(grad[k], features[image], rows, columns)
        grad_rois *= grad.dtype.type(spatial_scale)
    return grad_rois
