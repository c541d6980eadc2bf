"""roi_gather.cuh in Triton: RoIPool's and RoIAlign's backward pass as a gather.

Every cell of the map sums up what it is owed by the RoIs of its image, in ascending order of RoI, then bin: no atomics,
one order, the bits of every other backend. Two launches. One writes for each image (of each level) the list of its
RoIs, and for each RoI and each row and column of tiles the bins that lie there. In the other a program has a tile of
TILE x TILE cells and 64 channels: it tests MEMBERS RoIs of the list at a time against its tile and goes through the bins
of those that touch it, several at a time, so that their loads are in flight together. A gradient is thus read once for
each tile that its bin lies in, not once a cell.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import blocks_for, launch
from ..common.numeric_triton import compute_type, narrow, widen
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

TILE = tl.constexpr(4)
MEMBERS = 256  # RoIs that are tested at a time
CHANNELS = 64  # with 4 warps: every warp reads the channels' gradients itself, without a barrier
BINS_AT_ONCE = 8

# Which bins lie in a row or column of tiles: first | last << 16.
NO_BINS = tl.constexpr(0xFFFF)  # first > last


@triton.jit
def first_bin(bins):
    return bins & 0xFFFF


@triton.jit
def last_bin(bins):
    return (bins >> 16) & 0xFFFF


@triton.jit
def list_members(rois, thresholds, B, K, group, members, counts, MEMBERS: tl.constexpr):
    """Writes one group's list, ascending; group: level * B + image. thresholds: see roi_level."""
    count = 0
    for base in range(0, K, MEMBERS):
        k = base + tl.arange(0, MEMBERS)
        image, x1, y1, x2, y2 = load_roi(rois, k, k < K)
        index = roi_image(image, B)
        mine = ((index >= 0) & (roi_level(x1, y1, x2, y2, thresholds) * B + index == group)).to(tl.int32)
        place = group.to(tl.int64) * K + count + tl.cumsum(mine) - 1
        tl.store(members + place, k, mask=mine != 0)
        count += tl.sum(mine)
    tl.store(counts + group, count)


@triton.jit
def store_tile_bins(axis, cells_of, bins, limit, target, K, BINS: tl.constexpr, TILES: tl.constexpr):
    """Of one RoI's axis: for each tile along it the bins whose cells, cells_of(axis, bin) = (first, last), meet it;
    target: of the first tile, K numbers from tile to tile. Neither end descends (or neither ascends) from bin to bin,
    so the bins between the first and the last that meet a tile meet it too."""
    for base in range(0, tl.cdiv(limit, TILE), TILES):
        tile = base + tl.arange(0, TILES)
        least = tl.full([TILES], NO_BINS, tl.int32)
        most = tl.zeros([TILES], tl.int32)
        for start in range(0, bins, BINS):
            bin = start + tl.arange(0, BINS)
            first, last = cells_of(axis, bin)
            last = tl.where((bin < bins) & (first <= last), last, -TILE)
            meets = (first // TILE)[:, None] <= tile[None, :]
            meets = meets & ((last // TILE)[:, None] >= tile[None, :])
            least = tl.minimum(least, tl.min(tl.where(meets, bin[:, None], NO_BINS), axis=0))
            most = tl.maximum(most, tl.max(tl.where(meets, bin[:, None], 0), axis=0))
        tl.store(target + tile.to(tl.int64) * K, least | (most << 16), mask=tile * TILE < limit)


@triton.jit
def tile_at(index, levels, B):
    """(level, image, row, column) of a tile, and the sides of its level's map; tiles in this order."""
    level, start, end = 0, 0, 0
    for i in tl.static_range(len(levels[0])):
        h, w = sides(levels, i)
        level = tl.where(index >= end, i, level)
        start = tl.where(index >= end, end, start)
        end += B * tl.cdiv(h, TILE) * tl.cdiv(w, TILE)
    H, W = sides(levels, level)
    rows, columns = tl.cdiv(H, TILE), tl.cdiv(W, TILE)
    local = index - start
    return level, local // (rows * columns), local // columns % rows, local % columns, H, W


@triton.jit(do_not_specialize=["B", "K", "tile_rows"])
def gather_kernel(
    grad_output, source, tile_bins, tile_rows, members, counts, levels, B, K, grads,
    OWED: tl.constexpr, C: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, GRAD_LAST: tl.constexpr,
    LAST: tl.constexpr, CHANNELS: tl.constexpr, MEMBERS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """OWED(source, k, p, q, y, x, W, channel, cell_mask, channel_mask, grad, C, P, Q): (whether, what) the cells y, x
    are owed for the gradient of a bin. tile_rows: of the largest level; in tile_bins they come first."""
    T: tl.constexpr = grads[0].dtype.element_ty
    groups: tl.constexpr = tl.cdiv(C, CHANNELS)
    program = tl.program_id(0)
    level, image, tile_y, tile_x, H, W = tile_at(program // groups, levels, B)
    lane = tl.arange(0, TILE * TILE)
    cells, channel = crossed(lane, program % groups * CHANNELS + tl.arange(0, CHANNELS), LAST[0])
    y, x = tile_y * TILE + cells // TILE, tile_x * TILE + cells % TILE
    on_map, real = (y < H) & (x < W), channel < C
    grad_channel: tl.constexpr = 1 if GRAD_LAST else P * Q
    grad_bin: tl.constexpr = C if GRAD_LAST else 1

    group = level * B + image
    count = tl.load(counts + group)
    members += group.to(tl.int64) * K
    rows_at = tile_bins + tile_y.to(tl.int64) * K
    columns_at = tile_bins + (tile_rows + tile_x).to(tl.int64) * K
    sums = tl.zeros((y + channel).shape, compute_type(T))
    for base in range(0, count, MEMBERS):
        index = tl.arange(0, MEMBERS)
        k = tl.load(members + base + index, mask=base + index < count, other=0)
        rows = tl.load(rows_at + k, mask=base + index < count, other=NO_BINS)
        columns = tl.load(columns_at + k, mask=base + index < count, other=NO_BINS)
        touches = (first_bin(rows) <= last_bin(rows)) & (first_bin(columns) <= last_bin(columns))
        left = tl.where(touches, index, MEMBERS)
        hit = tl.min(left)
        while hit < MEMBERS:
            k = tl.load(members + base + hit).to(tl.int64)
            rows, columns = tl.load(rows_at + k), tl.load(columns_at + k)
            p, q = first_bin(rows), first_bin(columns)
            bins = (last_bin(rows) - p + 1) * (last_bin(columns) - q + 1)
            values = grad_output + k * (C * P * Q) + channel * grad_channel
            for done in range(0, bins, AT_ONCE):
                for i in tl.static_range(AT_ONCE):
                    there = done + i < bins
                    grad = tl.load(values + (p * Q + q) * grad_bin, mask=there & real, other=0.0)
                    owed, value = OWED(
                        source, k, p, q, y, x, W, channel, there & on_map, there & real, widen(grad), C, P, Q
                    )
                    sums += tl.where(owed, value, 0.0)
                    wraps = q == last_bin(columns)
                    p += wraps.to(tl.int32)
                    q = tl.where(wraps, first_bin(columns), q + 1)
            left = tl.where(left == hit, MEMBERS, left)
            hit = tl.min(left)

    channel_step, cell_step = map_strides(level, H, W, C, LAST)
    target = of_level(grads, level) + image.to(tl.int64) * C * H * W
    target += (y * W + x).to(tl.int64) * cell_step + channel.to(tl.int64) * channel_step
    tl.store(target, narrow(sums, T), mask=on_map & real)


class Tables(NamedTuple):
    """What the first launch writes and the second reads."""

    tile_bins: Tensor  # [tile rows + tile columns of the largest level, K]: first | last << 16
    tile_rows: int
    members: Tensor  # [levels * B, K] the RoIs of an image (of a level), ascending
    counts: Tensor  # [levels * B]

    @classmethod
    def empty(cls, rois: Tensor, grads: Sequence[Tensor]) -> "Tables":
        K, groups = rois.shape[0], len(grads) * grads[0].shape[0]
        tile_rows, tile_columns = (blocks_for(side, TILE.value) for side in largest(grads))
        empty = [torch.empty(n, dtype=torch.int32, device=rois.device) for n in (
            (tile_rows + tile_columns) * K, groups * K, groups
        )]
        return cls(empty[0], tile_rows, *empty[1:])


def gather(owed: Any, grad_output: Tensor, source: tuple[Any, ...], tables: Tables, grads: Sequence[Tensor]) -> None:
    """Fills grads, a map a level; owed, source: see gather_kernel."""
    K, C, P, Q = grad_output.shape
    B = grads[0].shape[0]
    channels = min(CHANNELS, triton.next_power_of_2(C))
    tiles = sum(blocks_for(g.shape[2], TILE.value) * blocks_for(g.shape[3], TILE.value) for g in grads)
    launch(
        gather_kernel, (B * tiles * blocks_for(C, channels),), grad_output, source, *tables, level_sides(grads), B, K,
        tuple(grads), like=grad_output, OWED=owed, C=C, P=P, Q=Q, GRAD_LAST=is_channels_last(grad_output),
        LAST=tuple(map(is_channels_last, grads)), CHANNELS=channels, MEMBERS=MEMBERS, AT_ONCE=BINS_AT_ONCE,
    )  # fmt: skip
