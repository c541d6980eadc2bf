"""anchor_gather.cu in Triton. Its gradient: a program owns BLOCK anchors, and takes the rows one after the other."""

from collections.abc import Sequence
from itertools import accumulate

import triton
import triton.language as tl
from torch import Tensor

from ..common.launch_triton import anchor_maps, blocks_for, launch
from ..common.map_triton import level_of, map_at, value_steps
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, narrow, widen

BLOCK = 128


@triton.jit(do_not_specialize=["A", "S"])
def gather_anchors_kernel(maps, indices, A, S, rows, VALUES: tl.constexpr, BLOCK: tl.constexpr):
    """An element is a row; axis 1 of the grid: images."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    mask = row < S
    index = tl.load(indices + image * S + row, mask=mask, other=-1)
    chosen = index >= 0 if not mutant("gather_first") else index > 0
    chosen = chosen & (index < A if not mutant("gather_last") else index < A - 1)
    level = level_of(maps, index)
    at, step = map_at(maps, level, image, index), value_steps(maps, level)
    for v in tl.static_range(VALUES):
        tl.store(rows + (image * S + row) * VALUES + v, tl.load(at + v * step, mask=chosen, other=0.0), mask=mask)


@triton.jit(do_not_specialize=["A", "S"])
def gather_anchors_backward_kernel(grad, indices, A, S, maps, VALUES: tl.constexpr, BLOCK: tl.constexpr):
    """An element is an anchor; axis 1 of the grid: images. All numbers of the maps are written."""
    T: tl.constexpr = grad.dtype.element_ty
    anchor = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    level = level_of(maps, anchor)
    at, step = map_at(maps, level, image, anchor), value_steps(maps, level)
    for v in tl.static_range(VALUES):
        total = tl.zeros([BLOCK], compute_type(T))
        row = image * S
        while row < (image + 1) * S:
            own = anchor == tl.load(indices + row)
            gradient = widen(tl.load(grad + row * VALUES + v))
            total = tl.where(own, (total if not mutant("gather_sum") else 0.0 * total) + gradient, total)
            row += 1
        tl.store(at + v * step, narrow(total, T), mask=anchor < A)


def gather_anchors(maps: Sequence[Tensor], indices: Tensor, values: int, rows: Tensor) -> None:
    (B, S), starts = indices.shape, _starts(maps, values)
    if B * S:
        launch(
            gather_anchors_kernel, (blocks_for(S, BLOCK), B), anchor_maps(maps, starts, values), indices, starts[-1], S,
            rows, like=rows, VALUES=values, BLOCK=BLOCK,
        )  # fmt: skip


def gather_anchors_backward(
    grad: Tensor, indices: Tensor, map_shapes: Sequence[int], channels_last: Sequence[bool], grad_maps: Sequence[Tensor]
) -> None:
    (B, S, values), starts = grad.shape, _starts(grad_maps, grad.shape[2])
    if B * starts[-1]:
        launch(
            gather_anchors_backward_kernel, (blocks_for(starts[-1], BLOCK), B), grad, indices, starts[-1], S,
            anchor_maps(grad_maps, starts, values), like=grad, VALUES=values, BLOCK=BLOCK,
        )  # fmt: skip


def _starts(maps: Sequence[Tensor], values: int) -> list[int]:
    return list(accumulate((m.shape[1] // values * m.shape[2] * m.shape[3] for m in maps), initial=0))
