"""roi_gather.cuh in Triton: RoIPool's and RoIAlign's backward pass as a gather.

Every cell of the map sums up what it is owed by the RoIs of its image, in ascending order of RoI, then bin: no atomics,
one order, the bits of every other backend. Two launches. One writes for each RoI the cells it touches and for each of
its rows and columns the bins that lie there, and for each image (of each level) the list of its RoIs. In the other a
program has a few neighbouring cells and up to 64 channels: it tests MEMBERS RoIs of the list at a time against its
cells and then visits those that touch one, in order; each cell goes through its own bins, several at a time, so that
their loads are in flight together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import blocks_for, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, narrow
from .roi_triton import (
    crossed,
    is_channels_last,
    largest,
    level_sides,
    load_roi,
    map_strides,
    of_level,
    roi_image,
    roi_level,
    sides,
)

MEMBERS = 256  # RoIs that are listed, or tested, at a time


@triton.jit
def list_members(rois, thresholds, B, R, group, members, counts, MEMBERS: tl.constexpr):
    """Writes one group's list, ascending; group: level * B + image. thresholds: see roi_level."""
    count = 0
    base = 0
    while base < R:
        k = base + tl.arange(0, MEMBERS)
        image, x1, y1, x2, y2 = load_roi(rois, k, k < R)
        index = roi_image(image, B)
        mine = ((index >= 0) & (roi_level(x1, y1, x2, y2, thresholds) * B + index == group)).to(tl.int32)
        place = group.to(tl.int64) * R + count + tl.cumsum(mine) - 1
        tl.store(members + place, k, mask=mine != 0)
        count += tl.sum(mine)
        base += MEMBERS
    tl.store(counts + group, count)


@triton.jit
def store_bins(k, bin, first, last, of_rows, R, H, W, windows, cell_bins, CELLS: tl.constexpr):
    """Where, along one axis of RoIs k [ROIS, 1, 1], bin [1, BINS, 1] touches the cells first ... last [ROIS, BINS, 1];
    none: last < first. Neither end descends (or neither ascends) from bin to bin, so the bins between the first and
    the last one at a cell are there too."""
    least = tl.min(tl.where(first <= last, first, 0x7FFFFFFF), axis=1, keep_dims=True)
    most = tl.max(tl.where(first <= last, last, -1), axis=1, keep_dims=True)
    least = tl.where(most < 0, 0, least)
    tl.store(windows + tl.where(of_rows, 0, 2 * R.to(tl.int64)) + k, least, mask=k < R)
    tl.store(windows + tl.where(of_rows, R, 3 * R.to(tl.int64)) + k, most, mask=k < R)
    cell_bins += k.to(tl.int64) * (H + W) + tl.where(of_rows, 0, H)
    cells = tl.max(most - least) + 1
    i = 0
    while i < cells:
        cell = least + i + tl.arange(0, CELLS)[None, None, :]
        here = (first <= cell) & (last >= cell if not mutant("gather_bin_end") else last > cell)
        lowest = tl.min(tl.where(here, bin, 0xFFFF), axis=1, keep_dims=True)
        highest = tl.max(tl.where(here, bin, 0), axis=1, keep_dims=True)
        tl.store(cell_bins + cell, lowest | (highest << 16), mask=cell <= most)
        i += CELLS


@triton.jit
def tile_at(index, levels, B, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(level, image, top, left) of a tile of cells, and the sides of its level's map; tiles in this order."""
    level, start, end = 0, 0, 0
    for i in tl.static_range(len(levels[0])):
        h, w = sides(levels, i)
        level = tl.where(index >= end, i, level)
        start = tl.where(index >= end, end, start)
        end += B * tl.cdiv(h, ROWS) * tl.cdiv(w, COLUMNS)
    H, W = sides(levels, level)
    rows, columns = tl.cdiv(H, ROWS), tl.cdiv(W, COLUMNS)
    local = index - start
    return level, local // (rows * columns), local // columns % rows * ROWS, local % columns * COLUMNS, H, W


@triton.jit(do_not_specialize=["R", "B", "H", "W"])
def gather_kernel(
    grad_output, source, R, H, W, windows, cell_bins, members, counts, levels, B, grads,
    OF_ROI: tl.constexpr, OWED: tl.constexpr, C: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    GRAD_LAST: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
    MEMBERS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """What the cells y, x are owed: found = OF_ROI(source, k, y, x, width, channel, H, W, C, PH, PW, LAST), then for
    each bin of a cell OWED(found, p, q, H, W, C, PH, PW, LAST, grad, bin_mask, real), where the bin's gradient is at
    grad; 0 where masked. R, H, W: see Tables. LAST: of each map."""
    T: tl.constexpr = grads[0].dtype.element_ty
    groups: tl.constexpr = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    level, image, top, left, height, width = tile_at(program // groups, levels, B, ROWS, COLUMNS)
    cell, channel = crossed(tl.arange(0, ROWS * COLUMNS), program % groups * CHANNELS + tl.arange(0, CHANNELS), LAST[0])
    real = channel < C
    y, x = top + cell // COLUMNS, left + cell % COLUMNS
    bottom, right = tl.minimum(top + ROWS, height) - 1, tl.minimum(left + COLUMNS, width) - 1
    grad_channel: tl.constexpr = 1 if GRAD_LAST else PH * PW
    grad_bin: tl.constexpr = C if GRAD_LAST else 1

    group = level * B + image
    count = tl.load(counts + group)
    members += group.to(tl.int64) * R
    window_size = R.to(tl.int64)
    sums = tl.zeros((y + channel).shape, compute_type(T))
    base = 0
    while base < count:
        index = tl.arange(0, MEMBERS)
        listed = base + index < count
        candidates = windows + tl.load(members + base + index, mask=listed, other=0)
        first_y = tl.load(candidates, mask=listed, other=0)
        touches = listed & (first_y <= bottom if not mutant("gather_bottom") else first_y < bottom)
        last_y = tl.load(candidates + window_size, mask=listed, other=0)
        touches = touches & (last_y >= top if not mutant("gather_top") else last_y > top)
        first_x = tl.load(candidates + 2 * window_size, mask=listed, other=0)
        touches = touches & (first_x <= right if not mutant("gather_right") else first_x < right)
        last_x = tl.load(candidates + 3 * window_size, mask=listed, other=0)
        touches = touches & (last_x >= left if not mutant("gather_left") else last_x > left)
        waiting = tl.where(touches, index, MEMBERS)
        next = tl.min(waiting)
        while next < MEMBERS:
            k = tl.load(members + base + next).to(tl.int64)
            window = windows + k
            inside = (y >= tl.load(window)) & (y <= tl.load(window + window_size)) & (y < height)
            rows = tl.load(cell_bins + k * (H + W) + y, mask=inside, other=0xFFFF)
            inside = (x >= tl.load(window + 2 * window_size)) & (x <= tl.load(window + 3 * window_size)) & (x < width)
            columns = tl.load(cell_bins + k * (H + W) + H + x, mask=inside, other=0xFFFF)
            p, first_q, last_q = rows & 0xFFFF, columns & 0xFFFF, columns >> 16
            q = first_q
            bins = tl.maximum((rows >> 16) - p + 1, 0) * tl.maximum(last_q - q + 1, 0)
            values = grad_output + k * (C * PH * PW) + channel * grad_channel
            found = OF_ROI(source, k, y, x, width, channel, H, W, C, PH, PW, LAST[0])
            most = tl.max(bins)
            done = 0
            while done < most:
                for i in tl.static_range(AT_ONCE):
                    grad = values + (p * PW + q) * grad_bin
                    left_over = done + i < bins if not mutant("gather_bins") else done + i < bins - 1
                    sums += OWED(found, p, q, H, W, C, PH, PW, LAST[0], grad, left_over, real)
                    wraps = q == last_q if not mutant("gather_wrap") else q > last_q
                    p = tl.where(wraps, p + 1, p)
                    q = tl.where(wraps, first_q, q + 1)
                done += AT_ONCE
            waiting = tl.where(waiting == next, MEMBERS, waiting)
            next = tl.min(waiting)
        base += MEMBERS

    channel_step, cell_step = map_strides(level, height, width, C, LAST)
    target = of_level(grads, level) + image.to(tl.int64) * C * height * width
    target += (y * width + x).to(tl.int64) * cell_step + channel.to(tl.int64) * channel_step
    tl.store(target, narrow(sums, T), mask=(y < height) & (x < width) & real)


class Tables(NamedTuple):
    """What the first launch writes and the second reads."""

    R: int
    H: int  # of the largest level
    W: int
    windows: Tensor  # [4, R] first and last row, first and last column that the RoI touches; none: 0, -1
    cell_bins: Tensor  # [R, H + W] which bins lie at a row or column within the window: first | last << 16
    members: Tensor  # [levels * B, R] the RoIs of an image (of a level), ascending
    counts: Tensor  # [levels * B]

    @classmethod
    def empty(cls, rois: Tensor, grads: Sequence[Tensor]) -> "Tables":
        R, (H, W), groups = rois.shape[0], largest(grads), len(grads) * grads[0].shape[0]
        sizes = (4 * R, R * (H + W), groups * R, groups)
        return cls(R, H, W, *(torch.empty(n, dtype=torch.int32, device=rois.device) for n in sizes))


class CellTile(NamedTuple):
    """Cells and channels of a program: with channels last 4 cells of many channels, else 16 cells of 16; where channels
    are few many cells, so that the RoIs are tested less often."""

    ROWS: int
    COLUMNS: int
    CHANNELS: int
    AT_ONCE: int  # bins of a cell
    warps: int
    registers: int = 0  # see launch

    @classmethod
    def of(cls, grads: Sequence[Tensor]) -> "CellTile":
        channels = triton.next_power_of_2(grads[0].shape[1])
        words = max(grads[0].element_size(), 4) // 4  # of a sum
        if channels <= 8:
            return cls(64 // max(channels, 4) // words, 32, channels, 2, 8, 128)
        if is_channels_last(grads[0]):
            return cls(2, 2, min(channels, 64 // words), 4, 1)
        return cls(2, 8, min(channels, 16), 4, 1)


def gather(
    of_roi: Any, owed: Any, grad_output: Tensor, source: tuple[Any, ...], tables: Tables, grads: Sequence[Tensor]
) -> None:
    """Fills grads, a map a level; of_roi, owed, source: see gather_kernel."""
    _, C, PH, PW = grad_output.shape
    B, tile = grads[0].shape[0], CellTile.of(grads)
    tiles = sum(blocks_for(g.shape[2], tile.ROWS) * blocks_for(g.shape[3], tile.COLUMNS) for g in grads)
    launch(
        gather_kernel, (B * tiles * blocks_for(C, tile.CHANNELS),), grad_output, source, *tables, level_sides(grads), B,
        tuple(grads), like=grad_output, OF_ROI=of_roi, OWED=owed, C=C, PH=PH, PW=PW,
        GRAD_LAST=is_channels_last(grad_output), LAST=tuple(map(is_channels_last, grads)), MEMBERS=MEMBERS,
        **tile._asdict(),
    )  # fmt: skip
