"""roi_pool.h and roi_pool.cu in Triton. Forward: one launch, see roi_triton.BinTile; every number of a tile steps
through the cells of its own bin. Backward: a gather, see roi_gather_triton.py."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, is_finite, narrow, scalar, widen
from .roi_gather_triton import MEMBERS, Tables, gather, list_members, store_bins
from .roi_triton import (
    AxisTile,
    BinTile,
    axis_tile,
    bin_tile,
    check_size,
    is_channels_last,
    load_roi,
    map_strides,
    roi_image,
)


@triton.jit
def round_half_away(x):
    whole = tl.where(x < 0.0, tl.ceil(x), tl.floor(x))
    distance = x - whole
    down = distance <= -0.5 if not mutant("roi_round") else distance < -0.5
    return tl.where(distance >= 0.5, whole + 1.0, tl.where(down, whole - 1.0, whole))


@triton.jit
def make_bins(low, high, scale, bins: tl.constexpr, ROUNDED: tl.constexpr):
    """(start, size, whether there are any) of the bins along one axis of RoIs."""
    if ROUNDED:
        start, end = round_half_away(low * scale), round_half_away(high * scale)
        length = (end - start) + 1.0
        length = tl.where(length > 1.0, length, 1.0) if not mutant("roi_min_size") else length
        any = is_finite(start) & is_finite(end)
    else:
        start, end = low * scale, (high + 1.0) * scale
        length = end - start
        any = length > 0.0 if not mutant("roi_plain_side") else length >= 0.0
        any = any & is_finite(start) & is_finite(end)
    return start, divide(length, tl.full(length.shape, bins, length.dtype)), any


@triton.jit
def clamped(edge, limit):
    """Into 0 ... limit; NaN: 0."""
    edge = tl.where(edge > 0.0, edge, 0.0) if not mutant("roi_edge_low") else edge
    return tl.where(edge < limit, edge, limit.to(edge.dtype)).to(tl.int32)


@triton.jit
def bin_edges(start, size, bin, limit, ROUNDED: tl.constexpr):
    """The cells begin ... end - 1 of a bin, on a map of `limit` cells."""
    low, high = bin.to(size.dtype) * size, (bin + 1).to(size.dtype) * size
    if ROUNDED:
        low = tl.floor(low) + start
        high = (tl.ceil(high) if not mutant("roi_bin_end") else tl.floor(high) + 1.0) + start
    else:
        low = tl.floor(low + start)
        high = tl.ceil(high + start) if not mutant("roi_plain_end") else tl.ceil(high) + start
    return clamped(low, limit), clamped(high, limit)


@triton.jit
def load_bins(rois, k, R, scale, B, PH: tl.constexpr, PW: tl.constexpr, ROUNDED: tl.constexpr):
    """(image, start and size of the rows' and of the columns' bins) of RoIs; image -1 where a RoI has none."""
    image, x1, y1, x2, y2 = load_roi(rois, k, k < R)
    scale = scalar(scale, x1.dtype)
    start_y, size_y, any_y = make_bins(y1, y2, scale, PH, ROUNDED)
    start_x, size_x, any_x = make_bins(x1, x2, scale, PW, ROUNDED)
    any = any_y & any_x if not mutant("roi_finite_bins") else any_y
    return tl.where(any, roi_image(image, B), -1), start_y, size_y, start_x, size_x


@triton.jit(do_not_specialize=["scale", "B", "R", "H", "W"])
def pool_kernel(
    input, rois, scale, B, R, H, W, output, argmax,
    C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, ROUNDED: tl.constexpr, LAST: tl.constexpr,
    ROIS: tl.constexpr, BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program owns a bin_tile. argmax: pointer or None."""
    T: tl.constexpr = output.dtype.element_ty
    k, bin, channel = bin_tile(PH * PW, C, LAST, ROIS, BINS, CHANNELS)
    image, start_y, size_y, start_x, size_x = load_bins(rois, k, R, scale, B, PH, PW, ROUNDED)
    top, bottom = bin_edges(start_y, size_y, bin // PW, H, ROUNDED)
    left, right = bin_edges(start_x, size_x, bin % PW, W, ROUNDED)
    real = bin < PH * PW
    if ROIS > 1:  # else every program has a RoI
        real &= k < R
    # Not image >= 0 & ...: it may be a scalar, and of that and a block the interpreter makes integers.
    present = tl.where(image >= 0, real & (top < bottom) & (left < right), False)
    height, width = tl.where(present, bottom - top, 0), tl.where(present, right - left, 0)
    channel_step, cell_step = map_strides(0, H, W, C, (LAST,))
    cells = input + image * C * H * W + channel.to(tl.int64) * channel_step

    # NaN: nothing yet, so that -inf counts and NaN does not.
    empty = tl.zeros((bin + channel).shape, compute_type(T))
    best = tl.where(present, float("nan") if not mutant("roi_all_nan") else float("-inf"), empty)
    place = tl.full(best.shape, -1, tl.int32)
    rows, columns = tl.max(height), tl.max(width)
    row = top * W + left
    i = 0
    while i < rows:
        j = 0
        while j < columns:
            inside = (i < height) & (j < width)
            at = cells + (row + j).to(tl.int64) * cell_step
            value = widen(tl.load(at, mask=inside & (channel < C), other=0.0))
            above = value > best if not mutant("roi_first_max") else value >= best
            first = (best != best) & (value == value if not mutant("roi_minus_inf") else value > float("-inf"))
            better = inside & (above | first)
            best = tl.where(better, value, best)
            place = tl.where(better, row + j, place)
            j += 1
        row += W
        i += 1

    step: tl.constexpr = 1 if LAST else PH * PW
    bin_step: tl.constexpr = C if LAST else 1
    target = k * (C * PH * PW) + bin * bin_step + channel * step
    tl.store(output + target, narrow(best, T), mask=real & (channel < C))
    if argmax is not None:
        tl.store(argmax + target, place, mask=real & (channel < C))


@triton.jit(do_not_specialize=["scale", "B", "R", "H", "W"])
def tables_kernel(
    rois, scale, B, R, H, W, windows, cell_bins, members, counts,
    PH: tl.constexpr, PW: tl.constexpr, ROUNDED: tl.constexpr, ROIS: tl.constexpr, BINS: tl.constexpr,
    CELLS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """The first programs list the RoIs of an image each; then one owns the rows, or the columns, of ROIS RoIs."""
    program = tl.program_id(0)
    if program < B:
        list_members(rois, (), B, R, program, members, counts, MEMBERS)
    else:
        k, bin, of_rows = axis_tile(program - B, ROIS, BINS)
        image, start_y, size_y, start_x, size_x = load_bins(rois, k, R, scale, B, PH, PW, ROUNDED)
        start, size = tl.where(of_rows, start_y, start_x), tl.where(of_rows, size_y, size_x)
        begin, end = bin_edges(start, size, bin, tl.where(of_rows, H, W), ROUNDED)
        present = (image >= 0) & (bin < tl.where(of_rows, PH, PW))
        store_bins(k, bin, begin, tl.where(present, end, 0) - 1, of_rows, R, H, W, windows, cell_bins, CELLS)


@triton.jit
def argmax_of_roi(
    source, k, y, x, width, channel, H, W, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """See gather_kernel; source: argmax."""
    step: tl.constexpr = 1 if LAST else PH * PW
    return source[0] + k * (C * PH * PW) + channel * step, y * width + x


@triton.jit
def owed_to_argmax(
    found, p, q, H, W, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, LAST: tl.constexpr, grad, bin_mask, real
):  # fmt: skip
    bin_step: tl.constexpr = C if LAST else 1
    place = tl.load(found[0] + (p * PW + q) * bin_step, mask=bin_mask & real, other=-1)
    return tl.where(place == found[1], widen(tl.load(grad, mask=bin_mask & real, other=0.0)), 0.0)


def roi_pool(
    input: Tensor, rois: Tensor, output_height: int, output_width: int, spatial_scale: float, rounded: bool,
    with_argmax: bool, output: Tensor, argmax: Tensor,
) -> None:  # fmt: skip
    B, C, H, W = input.shape
    R, _, PH, PW = output.shape
    check_size({"input": input}, PH, PW)
    if R * C:
        tile = BinTile.of(output)
        launch(
            pool_kernel, (tile.programs(output),), input, rois, double_bits(spatial_scale), B, R, H, W, output,
            argmax if with_argmax else None, like=input, C=C, PH=PH, PW=PW, ROUNDED=rounded,
            LAST=is_channels_last(input), **tile._asdict(),
        )  # fmt: skip


def roi_pool_backward(
    grad: Tensor, argmax: Tensor, rois: Tensor, input_shape: Sequence[int], channels_last: bool, spatial_scale: float,
    rounded: bool, grad_input: Tensor,
) -> None:  # fmt: skip
    R, _, PH, PW = grad.shape
    B = grad_input.shape[0]
    check_size({"input": grad_input}, PH, PW)
    if grad_input.numel():
        tables = Tables.empty(rois, [grad_input])
        tile = AxisTile.of(rois, PH, PW)
        launch(
            tables_kernel, (B + tile.programs(R),), rois, double_bits(spatial_scale), B, *tables,
            like=rois, PH=PH, PW=PW, ROUNDED=rounded, MEMBERS=MEMBERS, **tile._asdict(),
        )  # fmt: skip
        gather(argmax_of_roi, owed_to_argmax, grad, (argmax,), tables, [grad_input])
