"""anchor_maps.h in Triton: where the numbers of an anchor lie. maps: launch_triton.anchor_maps."""

import triton
import triton.language as tl

from .box_triton import plain
from .mutant_triton import mutant
from .numeric_triton import widen


@triton.jit
def level_of(maps, index):
    """The level that the anchor of that index is in."""
    level = tl.zeros_like(index)
    for other in tl.static_range(1, len(maps)):
        level = tl.where(index >= plain(maps[other].start), other, level)
    return level


@triton.jit
def in_level(one, image, index):
    """Where the anchor's first number lies, if it is in that level."""
    # A level has fewer than 2^32 anchors, and division in 64 bits is slow.
    cell = (index - plain(one.start)).to(tl.uint32)
    at = plain(one.offset).to(tl.int64) + image.to(tl.int64) * plain(one.image_stride)
    if one.per_cell is not None:
        per_cell = plain(one.per_cell).to(tl.uint32)
        anchor = cell
        cell = anchor // per_cell
        own = anchor - cell * per_cell if not mutant("map_anchor") else cell - cell
        at += own.to(tl.int64) * plain(one.anchor_stride)
    if one.width is not None:
        width = plain(one.width).to(tl.uint32)
        y = cell // width
        at += y.to(tl.int64) * plain(one.row_stride)
        cell -= y * width
    if one.cell_stride is not None:
        return one.tensor + (at + cell.to(tl.int64) * plain(one.cell_stride))
    else:
        return one.tensor + (at + cell.to(tl.int64))


@triton.jit
def map_at(maps, level, image, index):
    """Pointers to the first numbers of the anchors of that index, which are in that level: a block, or one number."""
    at = in_level(maps[0], image, index)
    for other in tl.static_range(1, len(maps)):
        here = level == other if not mutant("map_level") else level == other - 1
        at = tl.where(here, in_level(maps[other], image, index), at)
    return at


@triton.jit
def value_step(one):
    if one.value_stride is None:
        return 1
    else:
        return plain(one.value_stride)


@triton.jit
def value_steps(maps, level):
    """From an anchor's number to its next one, of those in that level."""
    step = value_step(maps[0])
    for other in tl.static_range(1, len(maps)):
        step = tl.where(level == other, value_step(maps[other]), step)
    return step


@triton.jit
def load_deltas(maps, level, image, index, mask):
    """Four numbers in the compute type; 0 where masked."""
    at, step = map_at(maps, level, image, index), value_steps(maps, level)
    d0, d1 = tl.load(at, mask=mask, other=0.0), tl.load(at + step, mask=mask, other=0.0)
    d2, d3 = tl.load(at + 2 * step, mask=mask, other=0.0), tl.load(at + 3 * step, mask=mask, other=0.0)
    return widen(d0), widen(d1), widen(d2), widen(d3)
