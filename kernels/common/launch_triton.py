"""How a Triton kernel is launched, and how Python values reach it."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

GRID_FIELDS = 5  # height, width, anchors a cell, stride y, stride x


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any,
    like: Tensor, warps: int = 4, registers: int = 0, **constants: Any,
) -> None:  # fmt: skip
    """Runs the kernel on the device and the current stream of `like`.

    No fused multiply-add: every operation is rounded by itself, as on every other backend. registers: of a thread at
    most, on NVIDIA; for a kernel where ptxas, left to itself, would rather spill a few than run fewer warps. 0: its own
    choice.
    """
    if registers and not triton.knobs.runtime.interpret and driver.active.get_current_target().backend == "cuda":
        constants["maxnreg"] = registers
    run = kernel[grid]
    if like.is_cuda and like.device.index != torch.cuda.current_device():
        with torch.cuda.device(like.device):
            run(*arguments, **constants, num_warps=warps, enable_fp_fusion=False)
    else:
        run(*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def blocks_for(n: int, each: int) -> int:
    """Blocks of `each` that hold n items."""
    return (n + each - 1) // each


def double_bits(value: float) -> int:
    """A float as the integer with its 64 bits, for numeric_triton.scalar. The kernel names it in do_not_specialize."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def odd(value: int) -> int:
    """2 * value + 3, for box_triton.plain. Triton compiles a kernel anew where a number within a tuple is 1 or starts
    or ceases to be a multiple of 16; these numbers never are, so a picture of another size finds the kernel ready."""
    return 2 * value + 3


class AnchorSource(NamedTuple):
    """What box_triton.anchor_at takes: given boxes [A, 4] or [B, A, 4], or the cell anchors of a grid's levels."""

    anchors: Tensor
    image_stride: int  # elements from image to image: 0 or 4 * A
    levels: tuple[tuple[int, ...], ...]  # a level: odd() of start, first cell anchor, width, per_cell, stride y, x
    offset: int  # double_bits of the grid's offset


def anchor_source(anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float) -> AnchorSource:
    """Made of an op's arguments (see frcnn_fast.ops.anchors.AnchorSource)."""
    levels, start, cell_start = [], 0, 0
    for height, width, per_cell, stride_y, stride_x in zip(*[iter(anchor_grid)] * GRID_FIELDS, strict=True):
        levels.append(tuple(odd(v) for v in (start, cell_start, width, per_cell, stride_y, stride_x)))
        start, cell_start = start + height * width * per_cell, cell_start + per_cell
    stride = 4 * anchors.shape[1] if anchors.dim() == 3 else 0
    return AnchorSource(anchors, stride, tuple(levels), double_bits(anchor_offset))


class MapLevel(NamedTuple):
    """One level of what map_triton.map_at takes; the numbers as odd(), in elements where they are strides."""

    tensor: Tensor
    start: int  # index of the level's first anchor
    offset: int  # of its first number, from the tensor's
    image_stride: int
    cell_stride: int | None  # None: 1, as of what follows
    per_cell: int | None
    anchor_stride: int
    width: int | None  # None: there is one row
    row_stride: int
    value_stride: int | None


def anchor_maps(tensors: Sequence[Tensor], starts: Sequence[int], values: int) -> tuple[MapLevel, ...]:
    """What lies where of levels that start at these anchors (and the end): one table, [B, A] or [B, A, values], or a
    map of each level, [B, k * values, H, W]. As kernels/common/anchor_maps.h: what follows without a gap is one row."""
    levels = []
    for level, (start, end) in enumerate(pairwise(starts)):
        if tensors[0].dim() < 4:
            table = tensors[0]
            strides = table.stride(0), table.stride(1), 0, 0, table.stride(2) if values > 1 else 0
            levels.append(_map_level(table, start, start * table.stride(1), strides, 1, 1, end - start))
        else:
            image, channel, row, cell = tensors[level].stride()
            _, channels, rows, width = tensors[level].shape
            strides = image, cell, values * channel, row, channel
            levels.append(_map_level(tensors[level], start, 0, strides, channels // values, rows, width))
    return tuple(levels)


def _map_level(
    tensor: Tensor, start: int, offset: int, strides: tuple[int, ...], per_cell: int, rows: int, width: int
) -> MapLevel:
    image, cell, anchor, row, value = strides
    if per_cell > 1 and cell == per_cell * anchor:
        width, per_cell, cell = width * per_cell, 1, anchor
    if rows > 1 and row == width * cell:
        rows = 1
    return MapLevel(
        tensor, odd(start), odd(offset), odd(image), None if cell == 1 else odd(cell),
        odd(per_cell) if per_cell > 1 else None, odd(anchor), odd(width) if rows > 1 else None, odd(row),
        None if value == 1 else odd(value),
    )  # fmt: skip


def num_anchors(anchors: Tensor, anchor_grid: Sequence[int]) -> int:
    """A of an op's arguments."""
    levels = zip(*[iter(anchor_grid)] * GRID_FIELDS, strict=True)
    return (
        sum(height * width * per_cell for height, width, per_cell, _, _ in levels) if anchor_grid else anchors.shape[-2]
    )
