"""prroi_pool.h in Triton. One launch writes each RoI's weights along both axes, cell by cell, in the form that
RoIAlign's kernels read (roi_align_triton.py and, with their slopes, roi_align_rois_triton.py), which then sum up or
gather.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import divide, is_finite, scalar
from .roi_align_rois_triton import Slopes, add_totals, sum_parts, totals_item
from .roi_align_triton import empty_spans, owed_by_weight, sum_cells, weights_of_roi
from .roi_gather_triton import MEMBERS, Tables, gather, list_members, store_bins
from .roi_triton import AxisTile, axis_tile, check_size, load_roi, roi_image


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


@triton.jit(do_not_specialize=["scale", "B", "R"])
def precise_totals_kernel(
    rois, scale, B, R, parts, grad_rois, SLICES: tl.constexpr, PH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """See roi_align_rois_triton.add_totals."""
    k = totals_item(BLOCK)[0]
    factor = scalar(scale, rois.dtype.element_ty)
    _rows, _columns, pools = axes_of(load_roi(rois, k, k < R), factor, B)
    add_totals(pools if not mutant("precise_totals") else k >= 0, factor, R, parts, grad_rois, SLICES, PH, BLOCK)


def write_weights(
    map: Tensor, rois: Tensor, scale: float, PH: int, PW: int, slopes: Slopes | None, spans: Tensor | None,
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
    PH, PW = grad.shape[2:]
    check_size({"features": features}, PH, PW)

    def weigh(slopes: Slopes, spans: Tensor) -> tuple[Tensor, Tensor]:
        return write_weights(features, rois, spatial_scale, PH, PW, slopes, spans, None)

    sum_parts(grad, features, rois, spatial_scale, weigh, precise_totals_kernel, grad_rois)
