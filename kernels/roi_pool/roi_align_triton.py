"""roi_align.h and roi_align.cu in Triton: one launch writes each RoI's weights along both axes, cell by cell; a second
one sums up (forward, see roi_triton.BinTile) or gathers (backward, see roi_gather_triton.py). Both multiply and add in
the order of roi_align.h.

Weights are dense, as on CUDA: of bin b at cell i, at (roi * bins + b) * stride + i; first all rows', then all columns'.
Negative: no sample of the bin touches the cell. Written from a bin's first to its last touched cell, and (backward) on
to the edges of the tiles these cells are in.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import is_finite_box
from ..common.launch_triton import double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, narrow, scalar, widen
from .roi_gather_triton import MEMBERS, Tables, gather, list_members, store_bins
from .roi_levels import level_thresholds
from .roi_triton import (
    AxisTile,
    BinTile,
    axis_tile,
    bin_tile,
    check_size,
    is_channels_last,
    largest,
    level_sides,
    levels_by_name,
    load_roi,
    map_strides,
    of_level,
    roi_image,
    roi_level,
    sides,
)

MAX_SAMPLES = tl.constexpr(1 << 20)


@triton.jit
def make_samples(low, high, scale, bins: tl.constexpr, limit, RATIO: tl.constexpr, ALIGNED: tl.constexpr):
    """(start, size, count, limit, held) of the samples along one axis; count: in a bin; limit: cells; held: the length
    is 1, wherever the high end is."""
    if ALIGNED:
        start = low * scale - 0.5
        length = (high * scale - 0.5) - start
        held = length < length  # False
    else:
        start = low * scale
        length = high * scale - start
        held = (length > 1.0) == 0 if not mutant("align_min_side") else length < length
        length = tl.where(held, 1.0, length)
    size = divide(length, tl.full((), bins, length.dtype))
    if RATIO > 0:
        count = tl.where(limit > 0, min(RATIO, MAX_SAMPLES), 0)
    else:
        wanted = tl.ceil(size) if not mutant("align_adaptive") else tl.floor(size) + 1.0
        wanted = tl.where(wanted < MAX_SAMPLES, wanted, MAX_SAMPLES)
        count = tl.where((wanted >= 1.0) & (limit > 0), wanted, 0.0).to(tl.int32)  # NaN: 0
    return start, size, count, limit, held


@triton.jit
def place(axis, bin, index):
    """Where the bin's sample of that index lies."""
    start, size, count, _limit, _held = axis
    return (start + bin.to(size.dtype) * size) + divide((index.to(size.dtype) + 0.5) * size, count.to(size.dtype))


@triton.jit
def position(axis, bin, i):
    """Where sample i of the bin lies; never descending in i, even where a negative length (ALIGNED) reverses them."""
    return place(axis, bin, tl.where(axis[1] < 0.0, axis[2] - 1 - i, i) if not mutant("align_reversed") else i)


@triton.jit
def first_cell(x, limit):
    """The first of the two cells that a sample at x lies between; -1 below the map, limit beyond it and for NaN."""
    inside = (x >= -1.0) & (x <= limit if not mutant("align_outside_high") else x < limit)
    cell = tl.where(inside & (x > 0.0), x, 0.0).to(tl.int32)
    cell = tl.where(cell < limit - 1, cell, limit - 1) if not mutant("align_last_cell") else cell
    below = x < -1.0 if not mutant("align_outside_low") else x <= -1.0
    return tl.where(below, -1, tl.where(inside, cell, limit))


@triton.jit
def fraction_at(x, cell, limit):
    """How far a sample at x is on the way from its first cell to the next."""
    partly = (cell < limit - 1) & (x > 0.0 if not mutant("align_clamp_low") else x > -0.5)
    return tl.where(partly, x - cell.to(x.dtype), 0.0)


@triton.jit
def sample_from(axis, bin, cell, middle):
    """The bin's first sample whose first cell is `cell` or a later one; count if there is none. middle: where to look
    first."""
    count, limit = axis[2], axis[3]
    begin, end = middle * 0, middle * 0 + count
    while tl.max(end - begin) > 0:
        before = (first_cell(position(axis, bin, middle), limit) < cell) & (begin < end)
        end = tl.where(before, end, tl.minimum(middle, end))
        begin = tl.where(before, middle + 1, begin)
        middle = (begin + end) >> 1
    return begin


@triton.jit
def samples_on_map(axis, bin):
    """(begin, end) of the bin's samples that are on the map, and the (first, last) cell that they touch; last < first
    where there is none. Seldom does a bin reach beyond the map, so look at its ends first."""
    count, limit = axis[2], axis[3]
    begin = sample_from(axis, bin, 0, bin * 0 + count * 0)
    end = sample_from(axis, bin, limit, bin * 0 + tl.maximum(count - 1, 0))
    first = first_cell(position(axis, bin, begin), limit)
    last = tl.minimum(first_cell(position(axis, bin, end - 1), limit) + 1, limit - 1)
    return begin, end, tl.where(begin < end, first, 0), tl.where(begin < end, last, -1)


@triton.jit
def cell_weight(axis, bin, begin, end, cell, factor):
    """The sum of the weights that the bin's samples give the cell, in their order, times factor; negative where none
    touches it."""
    limit = axis[3]
    weight = tl.zeros(cell.shape, factor.dtype)
    touched = cell < 0
    most = tl.max(end - begin)
    i = 0
    while i < most:
        x = position(axis, bin, begin + i)
        low = first_cell(x, limit)
        fraction = fraction_at(x, low, limit)
        low = tl.where(begin + i < end, low, limit) if not mutant("align_bin_samples") else low
        is_low, is_high = low == cell, low + 1 == cell  # beyond the last cell there is none
        weight += tl.where(is_low, 1.0 - fraction, tl.where(is_high, fraction, 0.0))
        touched = touched | is_low | is_high
        i += 1
    return tl.where(touched, weight * factor, -1.0)


@triton.jit
def axis_of(
    roi, of_rows, levels, scales, thresholds, B, PH: tl.constexpr, PW: tl.constexpr, RATIO: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """(axis, factor) of the rows or columns of RoIs; without samples where a RoI pools nothing. factor: for the rows
    1 / (samples in a bin)."""
    image, x1, y1, x2, y2 = roi
    level = roi_level(x1, y1, x2, y2, thresholds)
    H, W = sides(levels, level)
    finite = is_finite_box(x1, y1, x2, y2)
    pools = (roi_image(image, B) >= 0) & (H > 0) & (W > 0)
    pools = pools & finite if not mutant("align_finite") else pools
    scale = scalar(of_level(scales, level), x1.dtype)
    rows = make_samples(y1, y2, scale, PH, tl.where(pools, H, 0), RATIO, ALIGNED)
    columns = make_samples(x1, x2, scale, PW, tl.where(pools, W, 0), RATIO, ALIGNED)
    start, size = tl.where(of_rows, rows[0], columns[0]), tl.where(of_rows, rows[1], columns[1])
    count, limit = tl.where(of_rows, rows[2], columns[2]), tl.where(of_rows, rows[3], columns[3])
    held = tl.where(of_rows, rows[4], columns[4])
    samples = rows[2].to(tl.int64) * columns[2]
    samples = tl.where(of_rows & (samples > 1), samples, 1).to(x1.dtype)
    return (start, size, count, limit, held), divide(tl.full(samples.shape, 1.0, x1.dtype), samples)


@triton.jit(do_not_specialize=["B", "R", "H", "W"])
def weights_kernel(
    rois, levels, scales, thresholds, B, R, H, W, row_weights, column_weights, spans, windows, cell_bins, members,
    counts, PH: tl.constexpr, PW: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr, ROIS: tl.constexpr,
    BINS: tl.constexpr, CELLS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """A program owns the rows, or the columns, of ROIS RoIs; backward, the first ones list the RoIs of an image and
    level each. H, W: of the largest level. spans: forward, [R, PH + PW, 2] the first and the last cell that a bin
    touches, or 0, -1. windows ... counts: backward, see Tables."""
    program = tl.program_id(0)
    lists = 0 if members is None else len(levels[0]) * B
    if program < lists:
        if members is not None:
            list_members(rois, thresholds, B, R, program, members, counts, MEMBERS)
    else:
        k, bin, of_rows = axis_tile(program - lists, ROIS, BINS)
        axis, factor = axis_of(load_roi(rois, k, k < R), of_rows, levels, scales, thresholds, B, PH, PW, RATIO, ALIGNED)
        begin, end, first, last = samples_on_map(axis, bin)
        real = (k < R) & (bin < tl.where(of_rows, PH, PW))
        last = tl.where(real, last, -1)
        if members is None:
            span = spans + 2 * (k * (PH + PW) + tl.where(of_rows, 0, PH) + bin)
            tl.store(span, first, mask=real)
            tl.store(span + 1, last, mask=real)
        else:
            store_bins(k, bin, first, last, of_rows, R, H, W, windows, cell_bins, CELLS)
        target = tl.where(of_rows, row_weights, column_weights)  # scalar: Triton 3.6 for AMD selects no other pointers
        target += tl.where(of_rows, (k * PH + bin) * H, (k * PW + bin) * W)
        cells = tl.max(last - first) + 1
        i = 0
        while i < cells:
            cell = first + i + tl.arange(0, CELLS)[None, None, :]
            weight = cell_weight(axis, bin, begin, end, cell, factor)
            tl.store(target + cell, weight, mask=cell <= last)
            i += CELLS


@triton.jit(do_not_specialize=["B", "R", "H", "W"])
def align_kernel(
    maps, rois, levels, thresholds, B, R, H, W, row_weights, column_weights, spans, output,
    C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, MAP_LAST: tl.constexpr, LAST: tl.constexpr,
    ROIS: tl.constexpr, BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program owns a bin_tile, whose lanes follow the maps: a number of the output is written once, and has been read
    for several times by then. Its bins step through their cells side by side. H, W: of the largest level. LAST: of the
    output."""
    T: tl.constexpr = output.dtype.element_ty
    k, bin, channel = bin_tile(PH * PW, C, MAP_LAST[0], ROIS, BINS, CHANNELS)
    image, x1, y1, x2, y2 = load_roi(rois, k, k < R)
    level = roi_level(x1, y1, x2, y2, thresholds)
    height, width = sides(levels, level)
    channel_step, cell_step = map_strides(level, height, width, C, MAP_LAST)
    # Where the RoI names no image, its bins touch no cell.
    cells = of_level(maps, level) + roi_image(image, B) * C * height * width + channel.to(tl.int64) * channel_step

    real = bin < PH * PW
    if ROIS > 1:  # else every program has a RoI
        real &= k < R
    p, q = bin // PW, bin % PW
    spans += 2 * k * (PH + PW)
    top, bottom = tl.load(spans + 2 * p, mask=real, other=0), tl.load(spans + 2 * p + 1, mask=real, other=-1)
    spans += 2 * PH
    left, right = tl.load(spans + 2 * q, mask=real, other=0), tl.load(spans + 2 * q + 1, mask=real, other=-1)
    row_weights += (k * PH + p) * H + top
    column_weights += (k * PW + q) * W + left

    sums = tl.zeros((bin + channel).shape, compute_type(T))
    rows, columns = tl.max(bottom - top) + 1, tl.max(right - left) + 1
    i = 0
    while i < rows:
        row_weight = tl.load(row_weights + i, mask=top + i <= bottom, other=-1.0)
        j = 0
        while j < columns:
            column_weight = tl.load(column_weights + j, mask=left + j <= right, other=-1.0)
            touched = (row_weight >= 0.0) & (column_weight >= 0.0)
            if mutant("align_touched"):
                touched = row_weight * column_weight > 0.0
            cell = ((top + i) * width + left + j).to(tl.int64) * cell_step
            value = tl.load(cells + cell, mask=touched & (channel < C), other=0.0)
            sums += (row_weight * column_weight) * widen(value)  # adding 0 changes no sum: none is -0
            j += 1
        i += 1

    stored: tl.constexpr = LAST if not mutant("align_output_layout") else MAP_LAST[0]
    step: tl.constexpr = 1 if stored else PH * PW
    bin_step: tl.constexpr = C if stored else 1
    target = output + k * (C * PH * PW) + bin * bin_step + channel * step
    tl.store(target, narrow(sums, T), mask=real & (channel < C))


@triton.jit
def weights_of_roi(
    source, k, y, x, width, channel, H, W, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """See gather_kernel; source: the row and the column weights."""
    return source[0] + k * PH * H + y, source[1] + k * PW * W + x


@triton.jit
def owed_by_weight(
    found, p, q, H, W, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr, grad, bin_mask, real
):  # fmt: skip
    row_weight = tl.load(found[0] + p * H, mask=bin_mask, other=-1.0)
    column_weight = tl.load(found[1] + q * W, mask=bin_mask, other=-1.0)
    value = tl.load(grad, mask=real & (row_weight >= 0.0) & (column_weight >= 0.0), other=0.0)
    return (row_weight * column_weight) * widen(value)


def write_weights(
    maps: Sequence[Tensor], rois: Tensor, scales: Sequence[float], thresholds: Sequence[float], ratio: int,
    aligned: bool, PH: int, PW: int, spans: Tensor | None, tables: Tables | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The row and column weights of all RoIs; fills spans, or tables (to gather)."""
    B, R, (H, W) = maps[0].shape[0], rois.shape[0], largest(maps)
    weights = rois.new_empty(R * PH * H), rois.new_empty(R * PW * W)
    tile = AxisTile.of(rois, PH, PW)
    lists, lists_and_bins = (len(maps) * B, tables[3:]) if tables else (0, (None,) * 4)
    launch(
        weights_kernel, (lists + tile.programs(R),), rois, level_sides(maps), tuple(map(double_bits, scales)),
        tuple(map(double_bits, thresholds)), B, R, H, W, *weights, spans, *lists_and_bins, like=rois,
        PH=PH, PW=PW, RATIO=ratio, ALIGNED=aligned, MEMBERS=MEMBERS, **tile._asdict(),
    )  # fmt: skip
    return weights


def sum_cells(
    maps: Sequence[Tensor], rois: Tensor, thresholds: Sequence[float], weights: tuple[Tensor, Tensor], spans: Tensor,
    output: Tensor,
) -> None:  # fmt: skip
    """The second launch of the forward pass. thresholds: see roi_triton.roi_level."""
    R, C, PH, PW = output.shape
    tile = BinTile.of(output)
    launch(
        align_kernel, (tile.programs(output),), tuple(maps), rois, level_sides(maps),
        tuple(map(double_bits, thresholds)), maps[0].shape[0], R, *largest(maps), *weights, spans, output, like=output,
        C=C, PH=PH, PW=PW, MAP_LAST=tuple(map(is_channels_last, maps)), LAST=is_channels_last(output), **tile._asdict(),
    )  # fmt: skip


def empty_spans(output: Tensor) -> Tensor:
    R, _, PH, PW = output.shape
    return torch.empty(2 * R * (PH + PW), dtype=torch.int32, device=output.device)


def align(
    maps: Sequence[Tensor], rois: Tensor, scales: Sequence[float], thresholds: Sequence[float], ratio: int,
    aligned: bool, output: Tensor,
) -> None:  # fmt: skip
    R, C, PH, PW = output.shape
    if R * C == 0:
        return
    spans = empty_spans(output)
    weights = write_weights(maps, rois, scales, thresholds, ratio, aligned, PH, PW, spans, None)
    sum_cells(maps, rois, thresholds, weights, spans, output)


def align_backward(
    grad_output: Tensor, rois: Tensor, scales: Sequence[float], thresholds: Sequence[float], ratio: int, aligned: bool,
    grads: Sequence[Tensor],
) -> None:  # fmt: skip
    if sum(g.numel() for g in grads) == 0:
        return
    PH, PW = grad_output.shape[2:]
    tables = Tables.empty(rois, grads)
    weights = write_weights(grads, rois, scales, thresholds, ratio, aligned, PH, PW, None, tables)
    gather(weights_of_roi, owed_by_weight, grad_output, weights, tables, grads)


def roi_align(
    input: Tensor, rois: Tensor, output_height: int, output_width: int, spatial_scale: float, sampling_ratio: int,
    aligned: bool, channels_last: bool, output: Tensor,
) -> None:  # fmt: skip
    check_size({"input": input}, output_height, output_width)
    align((input,), rois, (spatial_scale,), (), sampling_ratio, aligned, output)


def roi_align_backward(
    grad: Tensor, rois: Tensor, input_shape: Sequence[int], channels_last: bool, spatial_scale: float,
    sampling_ratio: int, aligned: bool, grad_input: Tensor,
) -> None:  # fmt: skip
    check_size({"input": grad_input}, *grad.shape[2:])
    align_backward(grad, rois, (spatial_scale,), (), sampling_ratio, aligned, (grad_input,))


def multiscale_roi_align(
    features: Sequence[Tensor], rois: Tensor, output_height: int, output_width: int, spatial_scales: Sequence[float],
    sampling_ratio: int, aligned: bool, canonical_scale: float, canonical_level: int, channels_last: bool,
    output: Tensor,
) -> None:  # fmt: skip
    check_size(levels_by_name(features), output_height, output_width)
    thresholds = level_thresholds(tuple(spatial_scales), canonical_scale, canonical_level)
    align(features, rois, spatial_scales, thresholds, sampling_ratio, aligned, output)


def multiscale_roi_align_backward(
    grad: Tensor, rois: Tensor, input_shapes: Sequence[int], channels_last: Sequence[bool],
    spatial_scales: Sequence[float], sampling_ratio: int, aligned: bool, canonical_scale: float, canonical_level: int,
    grad_features: Sequence[Tensor],
) -> None:  # fmt: skip
    check_size(levels_by_name(grad_features), *grad.shape[2:])
    thresholds = level_thresholds(tuple(spatial_scales), canonical_scale, canonical_level)
    align_backward(grad, rois, spatial_scales, thresholds, sampling_ratio, aligned, grad_features)
