"""prroi_pool.h in Triton. One launch writes each RoI's weights along both axes, cell by cell, in the form that
RoIAlign's kernels read (roi_align_triton.py), which then sum up or gather.

The gradient of the RoIs takes three launches: weights and slopes; parts, a slice of channels of some rows of bins; and
the sums of the parts.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import blocks_for, double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, folded, is_finite, scalar, widen
from .roi_align_triton import empty_spans, owed_by_weight, sum_cells, weights_of_roi
from .roi_gather_triton import MEMBERS, Tables, gather, list_members, store_bins
from .roi_triton import AxisTile, axis_tile, check_size, is_channels_last, load_roi, roi_image

LANES = 32  # channels of a slice
BINS = 8  # rows of bins of a part's program
ROIS = 32 if triton.knobs.runtime.interpret else 1  # of a part's program; the interpreter pays per program
BLOCK = 128


@triton.jit
def hat(t):
    below = 1.0 - tl.abs(t)
    return tl.where(below > 0.0, below, 0.0) if not mutant("precise_hat") else below


@triton.jit
def length_of(low, high, scale):
    """(start, length, whether the axis pools)."""
    start = low * scale
    length = high * scale - start
    longer = length > 0.0 if not mutant("precise_length") else length >= 0.0
    return start, length, longer & is_finite(length) if not mutant("precise_infinite") else longer


@triton.jit
def axes_of(roi, scale, B):
    """((start, length) of the rows, of the columns, whether the RoI pools)."""
    image, x1, y1, x2, y2 = roi
    row_start, row_length, rows = length_of(y1, y2, scale)
    column_start, column_length, columns = length_of(x1, x2, scale)
    return (row_start, row_length), (column_start, column_length), rows & columns & (roi_image(image, B) >= 0)


@triton.jit
def touched_cells(low, high, limit):
    """(first, last) cell on the map that the bin low ... high touches; none: last < first."""
    low, high = tl.where(low > 0.0, low, 0.0), tl.where(high > -1.0, high, -1.0)
    before, below = low < limit.to(low.dtype), high < (limit - 1).to(low.dtype)
    start = tl.where(before, low, 0.0)
    first = (start if not mutant("precise_first_cell") else tl.ceil(start)).to(tl.int32)
    end = tl.where(below, high, 0.0)
    last = (tl.ceil(end) if not mutant("precise_last_cell") else tl.floor(end)).to(tl.int32)
    return tl.where(before, first, limit), tl.where(below, last, limit - 1)


@triton.jit
def covered(low, high, cell, FAR: tl.constexpr):
    """The part of what the bin covers, between that cell and the next, that goes to the far (or the near) cell."""
    before, behind = low - cell, high - cell
    begin = tl.where(before > 0.0, before, 0.0) if not mutant("precise_segment_start") else before
    end = tl.where(behind < 1.0, behind, 1.0) if not mutant("precise_segment_end") else behind
    mean = (begin + end) * 0.5
    part = (end - begin) * (mean if FAR else 1.0 - mean)
    return tl.where(end > begin, part, 0.0) if not mutant("precise_disjoint") else part


@triton.jit
def cell_weight(low, high, cell):
    """Of the bin low ... high; 0 where it has no side."""
    side = high - low
    weight = divide(covered(low, high, cell - 1.0, True) + covered(low, high, cell, False), side)
    return tl.where(side > 0.0, weight, 0.0) if not mutant("precise_no_side") else weight


@triton.jit
def cell_slopes(low, high, bin, bins, cell, weight):
    """The derivatives of the weight in the low and in the high end of the RoI."""
    side = high - low
    at_low, at_high, length = weight - hat(low - cell), hat(high - cell) - weight, side * bins
    before, through = bin.to(low.dtype), (bin + 1).to(low.dtype)
    low_slope = divide(at_low * (bins - before) + at_high * (bins - through), length)
    high_slope = divide(at_low * before + at_high * through, length)
    if not mutant("precise_flat_slope"):
        low_slope, high_slope = tl.where(side > 0.0, low_slope, 0.0), tl.where(side > 0.0, high_slope, 0.0)
    return low_slope, high_slope


@triton.jit(do_not_specialize=["scale", "B", "R", "H", "W"])
def precise_weights_kernel(
    rois, scale, B, R, H, W, row_weights, column_weights, slopes, spans, windows, cell_bins, members, counts,
    PH: tl.constexpr, PW: tl.constexpr, ROIS: tl.constexpr, BINS: tl.constexpr, CELLS: tl.constexpr,
    MEMBERS: tl.constexpr,
):  # fmt: skip
    """A program owns the rows, or the columns, of ROIS RoIs. slopes: (low, high) of the rows, (low, high) of the
    columns, in the weights' places, or None. The rest as for roi_align_triton.weights_kernel."""
    program = tl.program_id(0)
    lists = 0 if members is None else B
    if program < lists:
        if members is not None:
            list_members(rois, (), B, R, program, members, counts, MEMBERS)
    else:
        k, bin, of_rows = axis_tile(program - lists, ROIS, BINS)
        rows, columns, pools = axes_of(load_roi(rois, k, k < R), scalar(scale, rois.dtype.element_ty), B)
        start, length = tl.where(of_rows, rows[0], columns[0]), tl.where(of_rows, rows[1], columns[1])
        limit = tl.where(of_rows, H, W)
        bins = tl.zeros(start.shape, start.dtype) + tl.where(of_rows, PH, PW).to(start.dtype)
        size = divide(length, bins)
        low, high = start + bin.to(size.dtype) * size, start + (bin + 1).to(size.dtype) * size
        first, last = touched_cells(low, high, limit)
        real = (k < R) & (bin < tl.where(of_rows, PH, PW))
        first, last = tl.where(real & pools, first, 0), tl.where(real & pools, last, -1)
        if members is None:
            span = spans + 2 * (k * (PH + PW) + tl.where(of_rows, 0, PH) + bin)
            tl.store(span, first, mask=real)
            tl.store(span + 1, last, mask=real)
        else:
            store_bins(k, bin, first, last, of_rows, R, H, W, windows, cell_bins, CELLS)
        target = tl.where(of_rows, row_weights, column_weights)  # scalar: see roi_align_triton.weights_kernel
        place = tl.where(of_rows, (k * PH + bin) * H, (k * PW + bin) * W)
        cells = tl.max(last - first) + 1
        i = 0
        while i < cells:
            cell = first + i + tl.arange(0, CELLS)[None, None, :]
            at = cell.to(low.dtype)
            weight = cell_weight(low, high, at)
            tl.store(target + place + cell, weight, mask=cell <= last)
            if slopes is not None:
                low_slope, high_slope = cell_slopes(low, high, bin, bins, at, weight)
                tl.store(tl.where(of_rows, slopes[0], slopes[2]) + place + cell, low_slope, mask=cell <= last)
                tl.store(tl.where(of_rows, slopes[1], slopes[3]) + place + cell, high_slope, mask=cell <= last)
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
            here = top + i <= bottom
            mean = tl.zeros([ROIS * BINS, LANES], U)
            low = tl.zeros([ROIS * BINS, LANES], U)
            high = tl.zeros([ROIS * BINS, LANES], U)
            j = 0
            while j < width:
                within = left + j <= right
                cell = ((top + i).to(tl.int64) * W + left + j) * step
                value = widen(tl.load(cells + cell, mask=here & within & present, other=0.0))
                mean += tl.load(column_weights + column_place + j, mask=within, other=0.0) * value
                low += tl.load(slopes[2] + column_place + j, mask=within, other=0.0) * value
                high += tl.load(slopes[3] + column_place + j, mask=within, other=0.0) * value
                j += 1
            weight = tl.load(row_weights + row_place + i, mask=here, other=0.0)
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


@triton.jit(do_not_specialize=["scale", "B", "R"])
def totals_kernel(
    rois, scale, B, R, parts, grad_rois, SLICES: tl.constexpr, PH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A lane owns one corner of one RoI."""
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k, corner = item // 4, item % 4
    factor = scalar(scale, rois.dtype.element_ty)
    _rows, _columns, pools = axes_of(load_roi(rois, k, k < R), factor, B)
    pools = (k < R) & pools if not mutant("precise_totals") else k < R
    total = tl.zeros([BLOCK], grad_rois.dtype.element_ty)
    i = 0
    while i < SLICES * PH:
        total += tl.load(parts + (k * (SLICES * PH) + i) * 4 + corner, mask=pools, other=0.0)
        i += 1
    target = grad_rois + k * 5
    tl.store(target + 1 + corner, tl.where(pools, total * factor, 0.0), mask=k < R)
    tl.store(target, tl.zeros([BLOCK], total.dtype), mask=(k < R) & (corner == 0))


def write_weights(
    map: Tensor, rois: Tensor, scale: float, PH: int, PW: int, slopes: tuple[Tensor, ...] | None, spans: Tensor | None,
    tables: Tables | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The row and column weights of all RoIs; fills slopes, and spans (forward) or tables (to gather)."""
    (B, _, H, W), R = map.shape, rois.shape[0]
    weights = rois.new_empty(R * PH * H), rois.new_empty(R * PW * W)
    tile = AxisTile.of(rois, PH, PW)
    if tile.registers:
        tile = tile._replace(registers=255)  # slopes take more divisions
    lists, lists_and_bins = (B, tables[3:]) if tables else (0, (None,) * 4)
    launch(
        precise_weights_kernel, (lists + tile.programs(R),), rois, double_bits(scale), B, R, H, W, *weights, slopes,
        spans, *lists_and_bins, like=rois, PH=PH, PW=PW, MEMBERS=MEMBERS, **tile._asdict(),
    )  # fmt: skip
    return weights


def prroi_pool(
    features: Tensor, rois: Tensor, output_height: int, output_width: int, spatial_scale: float, output: Tensor
) -> None:
    check_size({"features": features}, output_height, output_width)
    if output.numel() == 0:
        return
    spans = empty_spans(output)
    weights = write_weights(features, rois, spatial_scale, output_height, output_width, None, spans, None)
    sum_cells((features,), rois, (), weights, spans, output)


def prroi_pool_backward(
    grad: Tensor, rois: Tensor, input_shape: Sequence[int], channels_last: bool, spatial_scale: float,
    grad_features: Tensor,
) -> None:  # fmt: skip
    PH, PW = grad.shape[2:]
    check_size({"features": grad_features}, PH, PW)
    if grad_features.numel() == 0:
        return
    tables = Tables.empty(rois, (grad_features,))
    weights = write_weights(grad_features, rois, spatial_scale, PH, PW, None, None, tables)
    gather(weights_of_roi, owed_by_weight, grad, weights, tables, (grad_features,))


def prroi_pool_rois_backward(
    grad: Tensor, features: Tensor, rois: Tensor, spatial_scale: float, grad_rois: Tensor
) -> None:
    R, C, PH, PW = grad.shape
    B, _, H, W = features.shape
    check_size({"features": features}, PH, PW)
    if R * features.numel() == 0:
        grad_rois.zero_()
        return
    spans = empty_spans(grad)
    slopes = tuple(rois.new_empty(n) for n in (R * PH * H, R * PH * H, R * PW * W, R * PW * W))
    weights = write_weights(features, rois, spatial_scale, PH, PW, slopes, spans, None)
    rows = ROIS * BINS * 4 // rois.element_size()  # float64 takes twice the registers
    slices, bins = blocks_for(C, LANES), min(BINS, rows, triton.next_power_of_2(PH))
    at_once = rows // bins
    parts = rois.new_empty(R * slices * PH * 4)
    launch(
        parts_kernel, (blocks_for(R, at_once) * slices * blocks_for(PH, bins),), features, grad, rois, B, R, H, W,
        *weights, slopes, spans, parts, like=features, warps=2, C=C, PH=PH, PW=PW, LAST=is_channels_last(features),
        GRAD_LAST=is_channels_last(grad), ROIS=at_once, BINS=bins, LANES=LANES,
    )  # fmt: skip
    launch(
        totals_kernel, (blocks_for(4 * R, BLOCK),), rois, double_bits(spatial_scale), B, R, parts, grad_rois,
        like=rois, SLICES=slices, PH=PH, BLOCK=BLOCK,
    )  # fmt: skip
