"""roi_align_rois.cu in Triton: the gradient of the RoIs, of RoIAlign and of precise RoI pooling.

Weights and slopes come from whoever knows them, for RoIAlign in two launches. Then two more: parts, a slice of channels
of some rows of bins; and the sums of the parts.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import is_finite_box
from ..common.launch_triton import blocks_for, double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, folded, scalar, widen
from .roi_align_triton import axis_of, empty_spans, first_cell, position, samples_on_map, write_weights
from .roi_triton import AxisTile, axis_tile, check_size, is_channels_last, level_sides, load_roi, roi_image

LANES = 32  # channels of a slice
BINS = 8  # rows of bins of a part's program
ROIS = 32 if triton.knobs.runtime.interpret else 1  # of a part's program; the interpreter pays per program
BLOCK = 128

# (low, high) of the rows' weights, (low, high) of the columns', each in its weight's place
Slopes = tuple[Tensor, Tensor, Tensor, Tensor]


@triton.jit
def slope_of_sample(axis, bin, bins, i, x, low):
    """(low, high): how the weight of the upper of its two cells changes with sample i of the bin, at x, whose first
    cell is `low`."""
    _start, size, count, limit, held = axis
    index = tl.where(size < 0.0, count - 1 - i, i) if not mutant("align_slope_reversed") else i
    amount = count.to(x.dtype)
    share = divide(bin.to(x.dtype) * amount + (index.to(x.dtype) + 0.5), amount * bins)
    high = tl.where(held, 0.0, share) if not mutant("align_slope_held") else share
    moves = x > 0.0 if not mutant("align_slope_first") else x > -2.0
    moves &= low < limit - 1 if not mutant("align_slope_last") else low < limit
    return tl.where(moves, 1.0 - high, 0.0), tl.where(moves, high, 0.0)


@triton.jit
def cell_slopes(axis, bin, bins, begin, end, cell, factor):
    """The sums of the slopes that the bin's samples give the weight of the cell, in their order, times factor."""
    limit = axis[3]
    low_slope = tl.zeros(cell.shape, factor.dtype)
    high_slope = tl.zeros(cell.shape, factor.dtype)
    most = tl.max(end - begin)
    i = 0
    while i < most:
        x = position(axis, bin, begin + i)
        low = first_cell(x, limit)
        by_low, by_high = slope_of_sample(axis, bin, bins, begin + i, x, low)
        low = tl.where(begin + i < end, low, limit)
        is_low, is_high = low == cell, low + 1 == cell
        low_slope += tl.where(is_low, -by_low, tl.where(is_high, by_low, 0.0))
        high_slope += tl.where(is_low, -by_high, tl.where(is_high, by_high, 0.0))
        i += 1
    return low_slope * factor, high_slope * factor


@triton.jit(do_not_specialize=["scale", "B", "R", "H", "W"])
def slopes_kernel(
    rois, levels, scale, B, R, H, W, slopes, PH: tl.constexpr, PW: tl.constexpr, RATIO: tl.constexpr,
    ALIGNED: tl.constexpr, ROIS: tl.constexpr, BINS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """A program owns the rows, or the columns, of ROIS RoIs: the slopes of what roi_align_triton.weights_kernel
    writes."""
    k, bin, of_rows = axis_tile(tl.program_id(0), ROIS, BINS)
    roi = load_roi(rois, k, k < R)
    axis, factor = axis_of(roi, of_rows, levels, (scale,), (), B, PH, PW, RATIO, ALIGNED)
    begin, end, first, last = samples_on_map(axis, bin)
    bins = tl.where(of_rows, PH, PW)
    last = tl.where((k < R) & (bin < bins), last, -1)
    place = tl.where(of_rows, (k * PH + bin) * H, (k * PW + bin) * W)
    cells = tl.max(last - first) + 1
    i = 0
    while i < cells:
        cell = first + i + tl.arange(0, CELLS)[None, None, :]
        low, high = cell_slopes(axis, bin, bins.to(factor.dtype), begin, end, cell, factor)
        tl.store(tl.where(of_rows, slopes[0], slopes[2]) + place + cell, low, mask=cell <= last)
        tl.store(tl.where(of_rows, slopes[1], slopes[3]) + place + cell, high, mask=cell <= last)
        i += CELLS


@triton.jit(do_not_specialize=["B", "R", "H", "W"])
def parts_kernel(
    features, grad, rois, B, R, H, W, row_weights, column_weights, slopes, spans, parts,
    C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr, GRAD_LAST: tl.constexpr,
    ROIS: tl.constexpr, BINS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A program owns LANES channels of BINS rows of bins of ROIS RoIs, side by side; it takes the bins of a row one
    after the other. parts: [R, slices, PH, corners]."""
    U: tl.constexpr = compute_type(features.dtype.element_ty)
    slices: tl.constexpr = tl.cdiv(C, LANES)
    blocks: tl.constexpr = tl.cdiv(PH, BINS)
    program = tl.program_id(0)
    item = tl.arange(0, ROIS * BINS)
    k = (program // (slices * blocks)).to(tl.int64) * ROIS + item // BINS
    p = program % blocks * BINS + item % BINS
    slice = program // blocks % slices
    real = (k < R) & (p < PH)
    target = parts + ((k * slices + slice) * PH + p) * 4
    stored = real
    k, p, real = k[:, None], p[:, None], real[:, None]
    channel = slice * LANES + tl.arange(0, LANES)[None, :]
    present = channel < C
    image = roi_image(tl.load(rois + k * 5, mask=k < R, other=-1.0), B)  # where there is none, no cell is touched

    spans += 2 * k * (PH + PW)
    top, bottom = tl.load(spans + 2 * p, mask=real, other=0), tl.load(spans + 2 * p + 1, mask=real, other=-1)
    height = tl.max(bottom - top) + 1
    row_place = (k * PH + p) * H + top
    spans += 2 * PH
    step: tl.constexpr = C if LAST else 1
    cells = features + image * C * H * W + channel.to(tl.int64) * (1 if LAST else H.to(tl.int64) * W)
    grad += k * (C * PH * PW) + channel * (1 if GRAD_LAST else PH * PW)

    x1_sum = tl.zeros([ROIS * BINS, LANES], U)
    y1_sum = tl.zeros([ROIS * BINS, LANES], U)
    x2_sum = tl.zeros([ROIS * BINS, LANES], U)
    y2_sum = tl.zeros([ROIS * BINS, LANES], U)
    q = 0
    while q < PW:
        left = tl.load(spans + 2 * q, mask=real, other=0)
        right = tl.load(spans + 2 * q + 1, mask=real, other=-1)
        width = tl.max(right - left) + 1
        column_place = (k * PW + q) * W + left
        x1 = tl.zeros([ROIS * BINS, LANES], U)
        y1 = tl.zeros([ROIS * BINS, LANES], U)
        x2 = tl.zeros([ROIS * BINS, LANES], U)
        y2 = tl.zeros([ROIS * BINS, LANES], U)
        i = 0
        while i < height:
            weight = tl.load(row_weights + row_place + i, mask=top + i <= bottom, other=-1.0)
            here = weight >= 0.0
            mean = tl.zeros([ROIS * BINS, LANES], U)
            low = tl.zeros([ROIS * BINS, LANES], U)
            high = tl.zeros([ROIS * BINS, LANES], U)
            j = 0
            while j < width:
                across = tl.load(column_weights + column_place + j, mask=left + j <= right, other=-1.0)
                within = across >= 0.0
                cell = ((top + i).to(tl.int64) * W + left + j) * step
                value = widen(tl.load(cells + cell, mask=here & within & present, other=0.0))
                mean += across * value  # adding 0, of either sign, changes no sum
                low += tl.load(slopes[2] + column_place + j, mask=within, other=0.0) * value
                high += tl.load(slopes[3] + column_place + j, mask=within, other=0.0) * value
                j += 1
            x1 += tl.where(here, weight * low, 0.0)
            y1 += tl.where(here, tl.load(slopes[0] + row_place + i, mask=here, other=0.0) * mean, 0.0)
            x2 += tl.where(here, weight * high, 0.0)
            y2 += tl.where(here, tl.load(slopes[1] + row_place + i, mask=here, other=0.0) * mean, 0.0)
            i += 1
        bin = (p * PW + q) * (C if GRAD_LAST else 1)
        value = widen(tl.load(grad + bin, mask=real & present, other=0.0))
        x1_sum += value * x1
        y1_sum += value * y1
        x2_sum += value * x2
        y2_sum += value * y2
        q += 1

    kept = present if not mutant("precise_channels") else channel < C - 1
    tl.store(target, folded(tl.where(kept, x1_sum, 0.0), LANES), mask=stored)
    tl.store(target + 1, folded(tl.where(kept, y1_sum, 0.0), LANES), mask=stored)
    tl.store(target + 2, folded(tl.where(kept, x2_sum, 0.0), LANES), mask=stored)
    tl.store(target + 3, folded(tl.where(kept, y2_sum, 0.0), LANES), mask=stored)


@triton.jit
def totals_item(BLOCK: tl.constexpr):
    """(RoI, corner): a lane owns one corner of one RoI."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return item // 4, item % 4


@triton.jit
def add_totals(pools, factor, R, parts, grad_rois, SLICES: tl.constexpr, PH: tl.constexpr, BLOCK: tl.constexpr):
    """Adds up the parts, times the scale; 0 where a RoI does not pool."""
    k, corner = totals_item(BLOCK)
    pools &= k < R
    total = tl.zeros([BLOCK], grad_rois.dtype.element_ty)
    i = 0
    while i < SLICES * PH:
        total += tl.load(parts + (k * (SLICES * PH) + i) * 4 + corner, mask=pools, other=0.0)
        i += 1
    target = grad_rois + k * 5
    tl.store(target + 1 + corner, tl.where(pools, total * factor, 0.0), mask=k < R)
    tl.store(target, tl.zeros([BLOCK], total.dtype), mask=(k < R) & (corner == 0))


@triton.jit(do_not_specialize=["scale", "B", "R"])
def totals_kernel(
    rois, scale, B, R, parts, grad_rois, SLICES: tl.constexpr, PH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A lane owns one corner of one RoI."""
    k = totals_item(BLOCK)[0]
    image, x1, y1, x2, y2 = load_roi(rois, k, k < R)
    pools = roi_image(image, B) >= 0
    pools = pools & is_finite_box(x1, y1, x2, y2) if not mutant("align_totals") else pools
    add_totals(pools, scalar(scale, rois.dtype.element_ty), R, parts, grad_rois, SLICES, PH, BLOCK)


def sum_parts(
    grad: Tensor, features: Tensor, rois: Tensor, scale: float,
    weigh: Callable[[Slopes, Tensor], tuple[Tensor, Tensor]], totals: Any, grad_rois: Tensor,
) -> None:  # fmt: skip
    """weigh(slopes, spans): fills both, and returns the weights of the rows and of the columns; totals: the last
    launch's kernel."""
    R, C, PH, PW = grad.shape
    B, _, H, W = features.shape
    if R * features.numel() == 0:
        grad_rois.zero_()
        return
    spans = empty_spans(grad)
    rows, columns = R * PH * H, R * PW * W
    slopes = (rois.new_empty(rows), rois.new_empty(rows), rois.new_empty(columns), rois.new_empty(columns))
    weights = weigh(slopes, spans)
    at_once = ROIS * BINS * 4 // rois.element_size()  # float64 takes twice the registers
    slices, bins = blocks_for(C, LANES), min(BINS, at_once, triton.next_power_of_2(PH))
    at_once //= bins
    parts = rois.new_empty(R * slices * PH * 4)
    launch(
        parts_kernel, (blocks_for(R, at_once) * slices * blocks_for(PH, bins),), features, grad, rois, B, R, H, W,
        *weights, slopes, spans, parts, like=features, warps=2, registers=255, C=C, PH=PH, PW=PW,
        LAST=is_channels_last(features), GRAD_LAST=is_channels_last(grad), ROIS=at_once, BINS=bins, LANES=LANES,
    )  # fmt: skip
    launch(
        totals, (blocks_for(4 * R, BLOCK),), rois, double_bits(scale), B, R, parts, grad_rois, like=rois,
        SLICES=slices, PH=PH, BLOCK=BLOCK,
    )  # fmt: skip


def roi_align_rois_backward(
    grad: Tensor, input: Tensor, rois: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool,
    grad_rois: Tensor,
) -> None:  # fmt: skip
    PH, PW = grad.shape[2:]
    check_size({"input": input}, PH, PW)

    def weigh(slopes: Slopes, spans: Tensor) -> tuple[Tensor, Tensor]:
        tile = AxisTile.of(rois, PH, PW)._replace(registers=255)  # slopes take more divisions than weights
        launch(
            slopes_kernel, (tile.programs(rois.shape[0]),), rois, level_sides([input]), double_bits(spatial_scale),
            input.shape[0], rois.shape[0], *input.shape[2:], slopes, like=rois, PH=PH, PW=PW, RATIO=sampling_ratio,
            ALIGNED=aligned, **tile._asdict(),
        )  # fmt: skip
        return write_weights(
            (input,), rois, (spatial_scale,), (), sampling_ratio, aligned, PH, PW, spans, None
        )  # fmt: skip

    sum_parts(grad, input, rois, spatial_scale, weigh, totals_kernel, grad_rois)
