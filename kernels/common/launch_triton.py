"""How a Triton kernel is launched, and how Python values reach it."""

import struct
from collections.abc import Sequence
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


def num_anchors(anchors: Tensor, anchor_grid: Sequence[int]) -> int:
    """A of an op's arguments."""
    levels = zip(*[iter(anchor_grid)] * GRID_FIELDS, strict=True)
    return (
        sum(height * width * per_cell for height, width, per_cell, _, _ in levels) if anchor_grid else anchors.shape[-2]
    )
