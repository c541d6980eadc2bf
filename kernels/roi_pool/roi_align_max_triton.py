"""roi_align_max.h and roi_align_max.cu in Triton. Forward: one launch, see roi_triton.BinTile; every number of a tile
steps through the samples of its own bin. Backward: a gather, see roi_gather_triton.py, of what the argmaxes say."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, narrow, widen
from .roi_align_triton import axis_of, first_cell, fraction_at, place, samples_on_map
from .roi_gather_triton import MEMBERS, Tables, gather, list_members, store_bins
from .roi_triton import (
    AxisTile,
    BinTile,
    axis_tile,
    bin_tile,
    check_size,
    is_channels_last,
    level_sides,
    load_roi,
    map_strides,
    roi_image,
)


@triton.jit
def indices_on_map(axis, bin):
    """begin ... end - 1 of the bin's samples that are on the map; none: 0, 0."""
    begin, end, first, last = samples_on_map(axis, bin)
    size, count = axis[1], axis[2]
    any = (begin < end) & (last >= first)
    low, high = tl.where(size < 0.0, count - end, begin), tl.where(size < 0.0, count - begin, end)
    return tl.where(any, low, 0), tl.where(any, high, 0)


@triton.jit(do_not_specialize=["B", "R"])
def max_kernel(
    input, rois, levels, scales, B, R, output, argmax_y, argmax_x,
    C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr,
    LAST: tl.constexpr, ROIS: tl.constexpr, BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program owns a bin_tile. argmax_y, argmax_x: pointers or None."""
    T: tl.constexpr = output.dtype.element_ty
    k, bin, channel = bin_tile(PH * PW, C, LAST, ROIS, BINS, CHANNELS)
    real = bin < PH * PW
    if ROIS > 1:  # else every program has a RoI
        real &= k < R
    roi = load_roi(rois, k, k < R)
    rows, _share = axis_of(roi, True, levels, scales, (), B, PH, PW, RATIO, ALIGNED)
    columns, _one = axis_of(roi, False, levels, scales, (), B, PH, PW, RATIO, ALIGNED)
    p, q = bin // PW, bin % PW
    first_y, end_y = indices_on_map(rows, p)
    first_x, end_x = indices_on_map(columns, q)
    H, W = rows[3], columns[3]
    channel_step, cell_step = map_strides(0, H, W, C, (LAST,))
    # Where the RoI names no image, its bins have no samples.
    cells = input + roi_image(roi[0], B) * C * H * W + channel.to(tl.int64) * channel_step

    best = tl.zeros((bin + channel).shape, compute_type(T))
    best_y = tl.full(best.shape, -1, tl.int32)
    best_x = tl.full(best.shape, -1, tl.int32)
    any = real & (first_y < end_y) & (first_x < end_x)
    height, width = tl.where(any, end_y - first_y, 0), tl.where(any, end_x - first_x, 0)
    most_y, most_x = tl.max(height), tl.max(width)
    i = 0
    while i < most_y:
        y = place(rows, p, first_y + i)
        top = first_cell(y, H)
        down = fraction_at(y, top, H)
        bottom = tl.minimum(top + 1, H - 1)
        j = 0
        while j < most_x:
            x = place(columns, q, first_x + j)
            left = first_cell(x, W)
            across = fraction_at(x, left, W)
            right = tl.minimum(left + 1, W - 1)
            inside = (i < height) & (j < width)
            mask = inside & (channel < C)
            upper_left = widen(tl.load(cells + (top * W + left).to(tl.int64) * cell_step, mask=mask, other=0.0))
            upper_right = widen(tl.load(cells + (top * W + right).to(tl.int64) * cell_step, mask=mask, other=0.0))
            lower_left = widen(tl.load(cells + (bottom * W + left).to(tl.int64) * cell_step, mask=mask, other=0.0))
            lower_right = widen(tl.load(cells + (bottom * W + right).to(tl.int64) * cell_step, mask=mask, other=0.0))
            above, before = 1.0 - down, 1.0 - across
            value = ((above * before) * upper_left + (above * across) * upper_right) + (down * before) * lower_left
            value += (down * across) * lower_right
            larger = value > best if not mutant("align_max_first") else value >= best
            first = (best_y < 0) & (value == value if not mutant("align_max_nan") else value > float("-inf"))
            better = inside & (larger | first)
            best = tl.where(better, value, best)
            best_y = tl.where(better, first_y + i, best_y)
            best_x = tl.where(better, first_x + j, best_x)
            j += 1
        i += 1

    # Samples outside the map are worth 0; the first of them stands for all.
    samples = (rows[2] > 0) & (columns[2] > 0)
    at_start = (first_y > 0) | (first_x > 0) | (first_y >= end_y) | (first_x >= end_x)
    on_right, below = end_x < columns[2], end_y < rows[2]
    outside = samples & (at_start | on_right | below)
    outside_y = tl.where(at_start | on_right, 0, end_y)
    outside_x = tl.where(at_start, 0, tl.where(on_right, end_x, 0)) if not mutant("align_max_outside") else end_x * 0
    earlier = (outside_y < best_y) | ((outside_y == best_y) & (outside_x < best_x))
    earlier = earlier if not mutant("align_max_order") else best_y >= 0
    outside = outside & ((best_y < 0) | (best < 0.0) | ((best == 0.0) & earlier))
    best = tl.where(samples & (best_y < 0), float("nan"), best)
    best = tl.where(outside, 0.0, best)
    best_y, best_x = tl.where(outside, outside_y, best_y), tl.where(outside, outside_x, best_x)

    step: tl.constexpr = 1 if LAST else PH * PW
    bin_step: tl.constexpr = C if LAST else 1
    target = k * (C * PH * PW) + bin * bin_step + channel * step
    mask = real & (channel < C)
    tl.store(output + target, narrow(best, T), mask=mask)
    if argmax_y is not None:
        nowhere = best_y < 0
        tl.store(argmax_y + target, tl.where(nowhere, float("nan"), place(rows, p, best_y)), mask=mask)
        tl.store(argmax_x + target, tl.where(nowhere, float("nan"), place(columns, q, best_x)), mask=mask)


@triton.jit(do_not_specialize=["B", "R", "H", "W"])
def max_tables_kernel(
    rois, levels, scales, B, R, H, W, windows, cell_bins, members, counts, PH: tl.constexpr, PW: tl.constexpr,
    RATIO: tl.constexpr, ALIGNED: tl.constexpr, ROIS: tl.constexpr, BINS: tl.constexpr, CELLS: tl.constexpr,
    MEMBERS: tl.constexpr,
):  # fmt: skip
    """The first programs list the RoIs of an image each; then one owns the rows, or the columns, of ROIS RoIs."""
    program = tl.program_id(0)
    if program < B:
        list_members(rois, (), B, R, program, members, counts, MEMBERS)
    else:
        k, bin, of_rows = axis_tile(program - B, ROIS, BINS)
        axis, _factor = axis_of(load_roi(rois, k, k < R), of_rows, levels, scales, (), B, PH, PW, RATIO, ALIGNED)
        _begin, _end, first, last = samples_on_map(axis, bin)
        real = (k < R) & (bin < tl.where(of_rows, PH, PW))
        store_bins(k, bin, first, tl.where(real, last, -1), of_rows, R, H, W, windows, cell_bins, CELLS)


@triton.jit
def sample_of_roi(
    source, k, y, x, width, channel, H, W, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """See gather_kernel; source: argmax_y, argmax_x."""
    step: tl.constexpr = 1 if LAST else PH * PW
    at = k * (C * PH * PW) + channel * step
    return source[0] + at, source[1] + at, y, x


@triton.jit
def share_of_cell(position, cell, limit):
    """(the part of a sample that belongs to the cell, whether it is beside it)."""
    first = first_cell(position, limit)
    fraction = fraction_at(position, first, limit)
    is_first, is_next = first == cell, (first + 1 == cell) & (first >= 0)
    return tl.where(is_first, 1.0 - fraction, fraction), is_first | is_next


@triton.jit
def owed_by_sample(
    found, p, q, H, W, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr, grad, bin_mask, real
):  # fmt: skip
    bin_step: tl.constexpr = C if LAST else 1
    at = (p * PW + q) * bin_step
    mask = bin_mask & real
    down, near_y = share_of_cell(tl.load(found[0] + at, mask=mask, other=float("nan")), found[2], H)
    across, near_x = share_of_cell(tl.load(found[1] + at, mask=mask, other=float("nan")), found[3], W)
    value = widen(tl.load(grad, mask=mask & near_y & near_x, other=0.0))
    return tl.where(near_y & near_x, (down * across) * value, 0.0)


def roi_align_max(
    input: Tensor, rois: Tensor, output_height: int, output_width: int, spatial_scale: float, sampling_ratio: int,
    aligned: bool, with_argmax: bool, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
) -> None:  # fmt: skip
    check_size({"input": input}, output_height, output_width)
    R, C, PH, PW = output.shape
    if R * C:
        tile = BinTile.of(output)
        launch(
            max_kernel, (tile.programs(output),), input, rois, level_sides([input]), (double_bits(spatial_scale),),
            input.shape[0], R, output, *((argmax_y, argmax_x) if with_argmax else (None, None)), like=input, C=C, PH=PH,
            PW=PW, RATIO=sampling_ratio, ALIGNED=aligned, LAST=is_channels_last(input), **tile._asdict(),
        )  # fmt: skip


def roi_align_max_backward(
    grad: Tensor, argmax_y: Tensor, argmax_x: Tensor, rois: Tensor, input_shape: Sequence[int], channels_last: bool,
    spatial_scale: float, sampling_ratio: int, aligned: bool, grad_input: Tensor,
) -> None:  # fmt: skip
    R, _, PH, PW = grad.shape
    B = grad_input.shape[0]
    check_size({"input": grad_input}, PH, PW)
    if grad_input.numel():
        tables = Tables.empty(rois, [grad_input])
        tile = AxisTile.of(rois, PH, PW)
        launch(
            max_tables_kernel, (B + tile.programs(R),), rois, level_sides([grad_input]), (double_bits(spatial_scale),),
            B, *tables, like=rois, PH=PH, PW=PW, RATIO=sampling_ratio, ALIGNED=aligned, MEMBERS=MEMBERS,
            **tile._asdict(),
        )  # fmt: skip
        gather(sample_of_roi, owed_by_sample, grad, (argmax_y, argmax_x), tables, [grad_input])
