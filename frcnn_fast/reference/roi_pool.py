"""RoIPool (Girshick 2015, section 2.1), RoIAlign (He et al. 2017), and RoIAlign over a pyramid.

The geometry of a RoI is computed in the precision of `rois`, the values in the precision of `input`. So a
float64 input with float32 rois gives precise values at the very sample positions of a float32 backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def rois_of(boxes: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """[R, 5] rows of (image, x1, y1, x2, y2), from that or from a list of [L, 4] boxes of each image."""
    if isinstance(boxes, np.ndarray):
        return boxes
    rows = [np.concatenate([np.full_like(b[:, :1], image), b], axis=1) for image, b in enumerate(boxes)]
    return np.concatenate(rows)


def image_of(roi: np.ndarray, batch: int) -> int:
    """The RoI's image; -1 marks a padded row."""
    image = int(roi[0])
    if not -1 <= image < batch or image != roi[0]:
        raise ValueError(f"boxes: image index {roi[0]} outside -1 ... {batch - 1}")
    return image


def _round_half_away(x: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    return np.where(np.abs(x - whole) >= 0.5, whole + np.copysign(x.dtype.type(1), x), whole)


def _bins(start: np.floating, end: np.floating, rounded: bool, count: int, limit: int) -> list[tuple[int, int]]:
    """Half-open index ranges of `count` bins over start ... end (inclusive if rounded), clamped to [0, limit]."""
    dtype = type(start)
    length = end - start
    if rounded:
        length = max(length + dtype(1), dtype(1))
    size = length / dtype(count)

    def clamped(edge: np.floating) -> int:
        return int(edge) if 0 < edge < limit else (limit if edge >= limit else 0)

    if rounded:
        edges = [(np.floor(dtype(p) * size) + start, np.ceil(dtype(p + 1) * size) + start) for p in range(count)]
    else:
        edges = [(np.floor(dtype(p) * size + start), np.ceil(dtype(p + 1) * size + start)) for p in range(count)]
    return [(clamped(begin), clamped(end)) for begin, end in edges]


@dataclass(frozen=True)
class TouchedCells:
    """Of a bin along one axis: the cells that it touches, ascending, the weight of each, and (slopes) [2, cells] the
    derivatives of the weights in the low and in the high end of the RoI, in cells."""

    cells: np.ndarray | slice
    weights: np.ndarray
    slopes: np.ndarray


def roi_pool(
    input: np.ndarray,
    rois: np.ndarray,
    output_height: int,
    output_width: int,
    spatial_scale: float = 1.0,
    rounded: bool = True,
    with_argmax: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Maxima [R, C, PH, PW] of input [B, C, H, W] over a grid of bins of each RoI, and argmax int32 (h*W + w).

    Corners are rounded half away from zero; or not at all, but 1 is added to the lower and right ones before they are
    scaled, and a RoI whose sides are then not both positive has empty bins only. The first maximum in row-major order
    wins. An empty bin gives 0 and argmax -1, a bin of NaN alone gives NaN and argmax -1; otherwise NaN is passed over.
    A RoI with a non-finite coordinate has empty bins only. Without with_argmax an empty array takes its place.
    """
    batch, channels, height, width = input.shape
    output = np.zeros((len(rois), channels, output_height, output_width), input.dtype)
    argmax = np.full(output.shape, -1, np.int32)
    with np.errstate(all="ignore"):
        ends = np.zeros(4, rois.dtype) if rounded else np.array([0, 0, 1, 1], rois.dtype)
        corners = (rois[:, 1:] + ends) * rois.dtype.type(spatial_scale)
        corners = _round_half_away(corners) if rounded else corners
        for k, (x1, y1, x2, y2) in enumerate(corners):
            image = image_of(rois[k], batch)
            if image < 0 or not np.isfinite(corners[k]).all():
                continue
            if not rounded and not (x2 - x1 > 0 and y2 - y1 > 0):
                continue
            columns = _bins(x1, x2, rounded, output_width, width)
            for p, (top, bottom) in enumerate(_bins(y1, y2, rounded, output_height, height)):
                for q, (left, right) in enumerate(columns):
                    if top >= bottom or left >= right:
                        continue
                    cells = input[image, :, top:bottom, left:right].reshape(channels, (bottom - top) * (right - left))
                    missing = np.isnan(cells)
                    # -inf is a value like any other, so NaN cells must lose to it as well.
                    first = np.where(missing.all(axis=1), 0, _first_maximum(cells, missing))
                    output[k, :, p, q] = cells[np.arange(channels), first]
                    row, column = np.divmod(first, right - left)
                    where = (top + row) * width + (left + column)
                    argmax[k, :, p, q] = np.where(missing.all(axis=1), -1, where)
    return output, argmax if with_argmax else np.empty(0, np.int32)


def _first_maximum(cells: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Index of the first largest non-NaN entry of each row (0 where there is none)."""
    largest = np.where(missing, -np.inf, cells).max(axis=1, keepdims=True)
    return ((cells == largest) & ~missing).argmax(axis=1)


def roi_pool_backward(
    grad: np.ndarray,
    argmax: np.ndarray,
    rois: np.ndarray,
    input_shape: Sequence[int],
    channels_last: bool = False,
    spatial_scale: float = 1.0,
    rounded: bool = True,
) -> np.ndarray:
    """Each output's gradient goes to its argmax; overlapping RoIs add up. [B, C, H, W].

    argmax says all; neither the layout that a kernel writes nor the RoIs' bins matter here.
    """
    batch, channels, height, width = input_shape
    grad_input = np.zeros((batch, channels, height * width), grad.dtype)
    for k, roi in enumerate(rois):
        image = image_of(roi, batch)
        if image < 0:
            continue
        for c in range(channels):
            hit = argmax[k, c] >= 0
            np.add.at(grad_input[image, c], argmax[k, c][hit], grad[k, c][hit])
    return grad_input.reshape(input_shape)


class _Samples:
    """Bilinear sample positions of one RoI along one axis, [bins, per_bin]: two cells and their weights, and (moves)
    how far the low and the high end of the RoI move each sample between them."""

    def __init__(self, low: np.floating, high: np.floating, bins: int, ratio: int, aligned: bool, limit: int):
        dtype = type(low)
        length = high - low
        held = not aligned and not length > 1
        if held:
            length = dtype(1)
        size = length / dtype(bins)
        count = ratio if ratio > 0 else max(int(np.ceil(size)), 0)
        steps = (np.arange(count).astype(dtype) + dtype(0.5)) * size / dtype(max(count, 1))
        position = low + np.arange(bins).astype(dtype)[:, None] * size + steps[None, :]
        self.count, self.place, self.reversed = count, position, size < 0
        self.inside = (position >= -1) & (position <= limit)
        position = np.where(self.inside & (position > 0), position, dtype(0))
        cell = position.astype(np.int64)
        last = cell >= limit - 1
        self.low = np.where(last, limit - 1, cell)
        self.high = np.where(last, limit - 1, cell + 1)
        self.weight_high = np.where(last, dtype(0), position - cell.astype(dtype))
        self.weight_low = dtype(1) - self.weight_high
        # Of p * count + (i + 0.5) out of count * bins parts the high end's; what was moved onto a cell stays there.
        index = np.arange(bins).astype(dtype)[:, None] * dtype(count) + (np.arange(count).astype(dtype) + dtype(0.5))
        share = np.zeros_like(index) if held else index / (dtype(max(count, 1)) * dtype(bins))
        free = self.inside & (self.place > 0) & ~last
        self.moves = [np.where(free, part, dtype(0)) for part in (dtype(1) - share, share)]

    def by_cell(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the samples of a bin added up cell by cell, [bins, limit], and which cells a sample touches."""
        weights, touched = self._summed(limit, self.weight_low, self.weight_high)
        return weights, touched

    def bins(self, limit: int, factor: np.floating) -> list[TouchedCells]:
        """What each bin touches; weights and slopes times factor."""
        weights, touched = self.by_cell(limit)
        slopes = np.stack([self._summed(limit, -move, move)[0] for move in self.moves])
        return [
            TouchedCells(np.flatnonzero(here), weights[p, here] * factor, slopes[:, p, here] * factor)
            for p, here in enumerate(touched)
        ]

    def _summed(self, limit: int, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What samples give their two cells, added up in the order of their positions, and which cells they touch."""
        sums = np.zeros((len(self.low), limit), low.dtype)
        touched = np.zeros(sums.shape, bool)
        step = -1 if self.reversed else 1
        inside = self.inside[:, ::step]
        bins = np.argwhere(inside)[:, :1]
        cells = np.stack([self.low, self.high], axis=-1)[:, ::step][inside]
        np.add.at(sums, (bins, cells), np.stack([low, high], axis=-1)[:, ::step][inside])
        touched[bins, cells] = True
        return sums, touched


def _sample_grid(
    roi: np.ndarray,
    shape: tuple[int, int],
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[_Samples, _Samples]:
    dtype = roi.dtype.type
    x1, y1, x2, y2 = roi[1:] * dtype(spatial_scale) - dtype(0.5 if aligned else 0.0)
    rows = _Samples(y1, y2, output_size[0], sampling_ratio, aligned, shape[0])
    columns = _Samples(x1, x2, output_size[1], sampling_ratio, aligned, shape[1])
    return rows, columns


def _corner_weights(rows: _Samples, columns: _Samples):
    """The four (row cells, column cells, weights [P, I, Q, J]) that a bilinear sample is made of."""
    for row, row_weight in ((rows.low, rows.weight_low), (rows.high, rows.weight_high)):
        for column, column_weight in ((columns.low, columns.weight_low), (columns.high, columns.weight_high)):
            weight = row_weight[:, :, None, None] * column_weight[None, None]
            yield row[:, :, None, None], column[None, None], weight


def roi_align(
    input: np.ndarray,
    rois: np.ndarray,
    output_height: int,
    output_width: int,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    channels_last: bool = False,
) -> np.ndarray:
    """Mean of bilinear samples in each bin, [R, C, PH, PW]. The layout that a kernel writes does not matter here.

    The weights of a bin's samples are added up along each axis before they meet the values; NaN and infinity count in
    every cell that a sample touches, even with weight 0.
    A sample further than one cell outside the map adds 0 and is still counted. sampling_ratio <= 0:
    ceil(bin side) samples along each axis. aligned: positions shift by half a cell and small RoIs are not
    enlarged to 1x1.
    """
    size = output_height, output_width
    batch, channels, height, width = input.shape
    output = np.zeros((len(rois), channels, *size), input.dtype)
    if height == 0 or width == 0:
        return output
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            if image < 0 or not np.isfinite(roi).all():
                continue
            rows, columns = _sample_grid(roi, (height, width), size, spatial_scale, sampling_ratio, aligned)
            count = input.dtype.type(max(rows.count * columns.count, 1))
            (row_weights, row_touched), (column_weights, column_touched) = rows.by_cell(height), columns.by_cell(width)
            for p, q in np.ndindex(size):
                y, x = np.flatnonzero(row_touched[p]), np.flatnonzero(column_touched[q])
                weight = row_weights[p, y][:, None] * column_weights[q, x][None, :]
                cells = input[image][:, y[:, None], x]
                output[k, :, p, q] = (weight.astype(input.dtype) * cells).sum(axis=(1, 2)) / count
    return output


def roi_align_backward(
    grad: np.ndarray,
    rois: np.ndarray,
    input_shape: Sequence[int],
    channels_last: bool = False,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> np.ndarray:
    """Gradient of roi_align in its input, [B, C, H, W]. The layout that a kernel writes does not matter here."""
    size = grad.shape[2], grad.shape[3]
    batch, channels, height, width = input_shape
    grad_input = np.zeros((batch, channels, height * width), grad.dtype)
    if height == 0 or width == 0:
        return grad_input.reshape(input_shape)
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            if image < 0 or not np.isfinite(roi).all():
                continue
            rows, columns = _sample_grid(roi, (height, width), size, spatial_scale, sampling_ratio, aligned)
            inside = rows.inside[:, :, None, None] & columns.inside[None, None]
            share = grad[k] / grad.dtype.type(max(rows.count * columns.count, 1))
            share = np.broadcast_to(share[:, :, None, :, None], (channels, *inside.shape))
            for row, column, weight in _corner_weights(rows, columns):
                cell = np.broadcast_to(row * width + column, inside.shape)[inside]
                for c in range(channels):
                    np.add.at(grad_input[image, c], cell, (weight.astype(grad.dtype) * share[c])[inside])
    return grad_input.reshape(input_shape)


SLICE = 32  # channels whose gradients are folded together


def sum_in_order(terms: np.ndarray) -> np.ndarray:
    """Over the last axis, one after the other, from 0 on."""
    if terms.shape[-1] == 0:
        return np.zeros(terms.shape[:-1], terms.dtype)
    return np.add.accumulate(terms, axis=-1)[..., -1] + terms.dtype.type(0)


def gradient_of_corners(
    grad: np.ndarray, image: np.ndarray, rows: Sequence[TouchedCells], columns: Sequence[TouchedCells]
) -> np.ndarray:
    """The gradient of one RoI in (x1, y1, x2, y2), in cells: grad [C, PH, PW], image [C, H, W], C > 0.

    The derivative of an output number in a corner: along each touched row the sums over the columns, ascending, of
    weight * value and of slope * value (low, high); then over the rows, ascending, the sums of row weight * (sum of
    slopes) for x1 and x2, of row slope * (sum of weights) for y1 and y2. These times the gradient are added up along a
    row of bins, channel by channel; 32 neighbouring channels are folded, the upper half added to the lower one until
    one is left (absent channels are 0); their sums are added up in the order of channels, then rows of bins.
    """
    channels = len(grad)
    slices = -(-channels // SLICE)
    parts = np.zeros((4, slices, len(rows)), grad.dtype)
    for p, row in enumerate(rows):
        weight, row_low, row_high = (along.astype(grad.dtype) for along in (row.weights, *row.slopes))
        lanes = np.zeros((4, slices * SLICE), grad.dtype)
        for q, column in enumerate(columns):
            cells = image[:, row.cells][:, :, column.cells]
            mean, low, high = (
                sum_in_order(cells * along.astype(grad.dtype)) for along in (column.weights, *column.slopes)
            )
            products = (weight * low, row_low * mean, weight * high, row_high * mean)
            lanes[:, :channels] += grad[:, p, q] * np.stack([sum_in_order(product) for product in products])
        folded = lanes.reshape(4, slices, SLICE)
        while folded.shape[-1] > 1:
            half = folded.shape[-1] // 2
            folded = folded[..., :half] + folded[..., half:]
        parts[:, :, p] = folded[..., 0]
    return sum_in_order(parts.reshape(4, -1))


def roi_align_rois_backward(
    grad: np.ndarray,
    input: np.ndarray,
    rois: np.ndarray,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> np.ndarray:
    """Gradient of roi_align in its RoIs, [R, 5], 0 in the image's place; the number of samples is taken for fixed.

    A sample between two cells moves with the RoI's ends, each by its share, and the value there changes by the
    difference of the cells; one that was moved to the first or the last cell, and one outside the map, does not. Where
    the length is held at 1 the low end alone moves the samples. The sums' order: see gradient_of_corners.
    """
    size = grad.shape[2], grad.shape[3]
    batch, channels, height, width = input.shape
    grad_rois = np.zeros(rois.shape, grad.dtype)
    number = rois.dtype.type
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            if image < 0 or not np.isfinite(roi).all() or channels * height * width == 0:
                continue
            rows, columns = _sample_grid(roi, (height, width), size, spatial_scale, sampling_ratio, aligned)
            share = number(1) / number(max(rows.count * columns.count, 1))
            bins = rows.bins(height, share), columns.bins(width, number(1))
            grad_rois[k, 1:] = gradient_of_corners(grad[k], input[image], *bins)
        grad_rois *= grad.dtype.type(spatial_scale)
    return grad_rois


def roi_align_max(
    input: np.ndarray,
    rois: np.ndarray,
    output_height: int,
    output_width: int,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    with_argmax: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest of roi_align's samples in each bin, [R, C, PH, PW], and where it lies, y and x in cells.

    The first in row-major order of the samples wins, and NaN is passed over. A sample outside the map is 0. A bin
    without samples gives 0, one of NaN alone NaN, and both lie at NaN. Without with_argmax empty arrays take its place.
    """
    size = output_height, output_width
    batch, channels, height, width = input.shape
    output = np.zeros((len(rois), channels, *size), input.dtype)
    argmax = np.full((2, *output.shape), np.nan, rois.dtype)
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            if image < 0 or not np.isfinite(roi).all() or height == 0 or width == 0:
                continue
            rows, columns = _sample_grid(roi, (height, width), size, spatial_scale, sampling_ratio, aligned)
            if rows.count * columns.count == 0:
                continue
            inside = rows.inside[:, :, None, None] & columns.inside[None, None]
            parts = [weight * input[image][:, y, x] for y, x, weight in _corner_weights(rows, columns)]
            values = np.where(inside, ((parts[0] + parts[1]) + parts[2]) + parts[3], input.dtype.type(0))
            values = values.transpose(0, 1, 3, 2, 4).reshape(channels, *size, rows.count * columns.count)
            missing = np.isnan(values)
            largest = np.where(missing, -np.inf, values).max(axis=-1, keepdims=True)
            first = ((values == largest) & ~missing).argmax(axis=-1)
            output[k] = np.take_along_axis(values, first[..., None], -1)[..., 0]
            p, q = np.ogrid[: size[0], : size[1]]
            argmax[0, k] = rows.place[p, first // columns.count]
            argmax[1, k] = columns.place[q, first % columns.count]
            alone = missing.all(axis=-1)
            output[k][alone] = np.nan
            argmax[:, k][:, alone] = np.nan
    empty = np.empty(0, rois.dtype)
    return (output, *argmax) if with_argmax else (output, empty, empty)


def _beside(position: np.ndarray, limit: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The two cells that samples lie between, with their weights, and which of them are cells: a sample outside the map
    is beside none, and one at the last cell beside that alone."""
    inside = (position >= -1) & (position <= limit)
    moved = np.where(inside & (position > 0), position, 0).astype(position.dtype)
    cell = moved.astype(np.int64)
    last = cell >= limit - 1
    cell = np.where(last, limit - 1, cell)
    fraction = np.where(last, 0, moved - cell).astype(position.dtype)
    return [(cell, position.dtype.type(1) - fraction, inside), (cell + 1, fraction, inside & ~last)]


def roi_align_max_backward(
    grad: np.ndarray,
    argmax_y: np.ndarray,
    argmax_x: np.ndarray,
    rois: np.ndarray,
    input_shape: Sequence[int],
    channels_last: bool = False,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> np.ndarray:
    """Each output's gradient goes to the cells beside its argmax, by their bilinear weights. [B, C, H, W].

    argmax says all; neither the layout that a kernel writes nor where the other samples lie matters here.
    """
    batch, channels, height, width = input_shape
    grad_input = np.zeros((batch, channels, height * width), grad.dtype)
    with np.errstate(all="ignore"):
        for k, roi in enumerate(rois):
            image = image_of(roi, batch)
            if image < 0:
                continue
            for row, down, has_row in _beside(argmax_y[k], height):
                for column, across, has_column in _beside(argmax_x[k], width):
                    shares = (down * across).astype(grad.dtype) * grad[k]
                    for c in range(channels):
                        there = (has_row & has_column)[c]
                        np.add.at(grad_input[image, c], (row * width + column)[c][there], shares[c][there])
    return grad_input.reshape(input_shape)


def roi_levels(
    rois: np.ndarray,
    spatial_scales: Sequence[float],
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
) -> np.ndarray:
    """Pyramid level of each RoI as an index into spatial_scales, int64 [R].

    Level floor(canonical_level + log2(sqrt(area) / canonical_scale)), counted as the levels above the
    finest whose least area the RoI reaches; a NaN area reaches none.
    """
    dtype = rois.dtype.type
    finest, coarsest = (-round(math.log2(scale)) for scale in (spatial_scales[0], spatial_scales[-1]))
    coarser = range(finest + 1, coarsest + 1)
    least = [(canonical_scale * 2.0 ** (level - canonical_level - 1e-6)) ** 2 for level in coarser]
    with np.errstate(all="ignore"):
        area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        reached = area[:, None] >= np.asarray(least, np.float64).astype(dtype)[None, :]
    return reached.sum(axis=1).astype(np.int64)


def multiscale_roi_align(
    features: Sequence[np.ndarray],
    rois: np.ndarray,
    output_height: int,
    output_width: int,
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool = False,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
    channels_last: bool = False,
) -> np.ndarray:
    """roi_align of each RoI [R, 5] on its own pyramid level. The layout that a kernel writes does not matter here."""
    levels = roi_levels(rois, spatial_scales, canonical_scale, canonical_level)
    size = output_height, output_width
    output = np.zeros((len(rois), features[0].shape[1], *size), features[0].dtype)
    for level, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        mine = levels == level
        output[mine] = roi_align(feature, rois[mine], *size, scale, sampling_ratio, aligned)
    return output


def multiscale_roi_align_backward(
    grad: np.ndarray,
    rois: np.ndarray,
    input_shapes: Sequence[int],
    channels_last: Sequence[bool],
    spatial_scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool = False,
    canonical_scale: float = 224.0,
    canonical_level: int = 4,
) -> tuple[np.ndarray, ...]:
    """Gradient of multiscale_roi_align in each level's features. input_shapes: B, C, H, W, level after level."""
    levels = roi_levels(rois, spatial_scales, canonical_scale, canonical_level)
    shapes = zip(*[iter(input_shapes)] * 4)
    return tuple(
        roi_align_backward(grad[levels == level], rois[levels == level], shape, last, scale, sampling_ratio, aligned)
        for level, (shape, last, scale) in enumerate(zip(shapes, channels_last, spatial_scales, strict=True))
    )
