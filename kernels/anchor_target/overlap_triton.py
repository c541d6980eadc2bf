"""overlap.cuh in Triton, with the rules of anchor_target.h: the best overlap of each box of a block with the objects of
its image.

A program looks at OBJECTS objects at once, an element each, and takes those one by one that meet the hull of its boxes
(neighbours in a grid): what does not meet it overlaps none. A box is a tuple (x1, y1, x2, y2), the ground truth a tuple
(boxes [B, G, 4], counts [B], crowd [B, G] or None, G).
"""

import triton
import triton.language as tl

from ..common.box_triton import area, extent, intersection, iou, is_finite_box, load_box
from ..common.mutant_triton import mutant
from ..common.numeric_triton import divide, maximum, minimum

OBJECTS = tl.constexpr(32)


@triton.jit
def is_inside(box, image_size, LEGACY: tl.constexpr):
    """image_size: pointer to (height, width)."""
    x1, y1, x2, y2 = box
    height, width = tl.load(image_size), tl.load(image_size + 1)
    if LEGACY if not mutant("target_inside_edge") else not LEGACY:
        within = (x2 < width) & (y2 < height)
    else:
        within = (x2 <= width) & (y2 <= height)
    return ((x1 >= 0.0) & (y1 >= 0.0) if not mutant("target_inside_zero") else (x1 > 0.0) & (y1 > 0.0)) & within


@triton.jit
def is_positive(best, positive_iou):
    over = best >= positive_iou if not mutant("target_positive_edge") else best > positive_iou
    return over & (best > 0.0) if not mutant("target_zero_overlap") else over


@triton.jit
def is_negative(best, negative_iou):
    return best < negative_iou if not mutant("target_negative_edge") else best <= negative_iou


@triton.jit
def overlap_of(box, box_area, other, LEGACY: tl.constexpr):
    """IoU; 0/0 counts as 0."""
    found = iou(*box, box_area, *other, area(*other, LEGACY), LEGACY)
    return tl.where(found > 0.0, found, 0.0)


@triton.jit
def overlap_bits(overlap):
    """Overlaps are never negative and never NaN, so their bits sort as they do."""
    if overlap.dtype == tl.float64:
        return overlap.to(tl.int64, bitcast=True)
    else:
        return overlap.to(tl.int32, bitcast=True)


@triton.jit
def bits_overlap(bits, dtype: tl.constexpr):
    """bits: int64."""
    if dtype == tl.float64:
        return bits.to(tl.float64, bitcast=True)
    else:
        return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def hull_of(box, mask):
    """The smallest box around those under the mask; without any it meets nothing."""
    x1, y1, x2, y2 = box
    left, top = tl.min(tl.where(mask, x1, float("inf"))), tl.min(tl.where(mask, y1, float("inf")))
    right, bottom = tl.max(tl.where(mask, x2, float("-inf"))), tl.max(tl.where(mask, y2, float("-inf")))
    return left, top, right, bottom


@triton.jit
def meets(a, b, LEGACY: tl.constexpr):
    """Whether two boxes share an area."""
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    w = extent(maximum(ax1, bx1), minimum(ax2, bx2), LEGACY)
    h = extent(maximum(ay1, by1), minimum(ay2 if not mutant("target_hull") else ay1, by2), LEGACY)
    return (w > 0.0) & (h > 0.0)


@triton.jit
def gt_count(gt, image):
    """The number of objects; an out-of-range count means 0."""
    _, counts, _, G = gt
    count = tl.load(counts + image)
    outside = (count < 0) | (count > G) if not mutant("target_count_range") else count > G + 1
    return tl.where(outside, 0, count).to(tl.int32)


@triton.jit
def load_object(gt, image, g):
    boxes, _, _, G = gt
    return load_box(boxes, image * G + g, True)


@triton.jit
def load_objects(gt, image, first, count, CROWD: tl.constexpr):
    """(g, box, there) of the boxes first ... first + OBJECTS - 1; there: objects (or crowd boxes) that take part."""
    boxes, _, crowd, G = gt
    g = first + tl.arange(0, OBJECTS)
    row = image * G + g
    box = load_box(boxes, row, g < count)
    there = g < count
    if not mutant("target_finite_object"):
        there = there & is_finite_box(*box)
    if crowd is not None:
        is_crowd = tl.load(crowd + row, mask=g < count, other=0) != 0
        there = there & (is_crowd == CROWD) if not mutant("target_crowd_object") else there
    return g, box, there


@triton.jit
def following(g, mask, last, count):
    """The first g after `last` under the mask; count if there is none."""
    return tl.min(tl.where(mask & (g > last if not mutant("target_following") else g > last + 1), g, count))


@triton.jit
def on_crowd(box, gt, image, crowd_overlap, LEGACY: tl.constexpr):
    """Which boxes some crowd box covers. 0/0 covers nothing; a crowd box far away covers 0 of a box."""
    box_area = area(*box, LEGACY)
    covered = tl.zeros(box_area.shape, tl.int1)
    count = gt_count(gt, image)
    for first in range(0, count, OBJECTS):
        g, _, there = load_objects(gt, image, first, count, True)
        one = following(g, there, -1, count)
        while one < count:
            shared = intersection(*box, *load_object(gt, image, one), LEGACY)
            part = divide(shared, box_area)
            covered = covered | (part >= crowd_overlap if not mutant("target_crowd_edge") else part > crowd_overlap)
            one = following(g, there, one, count)
    return covered


@triton.jit
def match_objects(box, takes_part, gt, image, peaks, LEGACY: tl.constexpr):
    """(best, object, any_object): each box's highest overlap, the first object that has it (-1 where it is 0), and
    whether the image has an object at all. Raises peaks [G], if given, to the block's highest overlap with each object:
    an integer maximum over the bits, which needs no order."""
    box_area = area(*box, LEGACY)
    hull = hull_of(box, takes_part)
    best = tl.zeros_like(box_area)
    matched = tl.full(best.shape, -1, tl.int32)
    count = gt_count(gt, image)
    any_object = count * 0
    for first in range(0, count, OBJECTS):
        g, boxes, there = load_objects(gt, image, first, count, False)
        any_object = tl.maximum(any_object, tl.max(there.to(tl.int32)))
        near = there & meets(hull, boxes, LEGACY)
        highest = tl.zeros([OBJECTS], tl.int64)
        one = following(g, near, -1, count)
        while one < count:
            overlap = overlap_of(box, box_area, load_object(gt, image, one), LEGACY)
            overlap = tl.where(takes_part, overlap, 0.0) if not mutant("target_takes_part") else overlap
            better = overlap > best if not mutant("target_first_object") else overlap >= best
            matched = tl.where(better, one, matched)
            best = tl.where(better, overlap, best)
            if peaks is not None:
                highest = tl.where(g == one, tl.max(overlap_bits(overlap)).to(tl.int64), highest)
            one = following(g, near, one, count)
        if peaks is not None:
            tl.atomic_max(peaks + g, highest, mask=highest > 0, sem="relaxed")
    return best, matched, any_object


@triton.jit
def peak_object(box, best, open, gt, image, peaks, min_quality, LEGACY: tl.constexpr):
    """The last object of which the boxes under `open` are (one of) the best, found by the operations that found the
    peaks; -1 where there is none. An object's peak above the highest `best` is not here."""
    box_area = area(*box, LEGACY)
    hull = hull_of(box, open)
    highest = tl.max(tl.where(open, best, 0.0))
    found = tl.full(best.shape, -1, tl.int32)
    count = gt_count(gt, image)
    for first in range(0, count, OBJECTS):
        g, boxes, _ = load_objects(gt, image, first, count, False)
        peak = bits_overlap(tl.load(peaks + g, mask=g < count, other=0), best.dtype)
        reached = peak <= highest if not mutant("target_peak_reached") else peak < highest
        good = peak >= min_quality if not mutant("target_min_quality") else peak > min_quality
        good = good & (peak > 0.0 if not mutant("target_zero_peak") else peak >= 0.0)
        near = good & reached & meets(hull, boxes, LEGACY)
        one = following(g, near, -1, count)
        while one < count:
            overlap = overlap_of(box, box_area, load_object(gt, image, one), LEGACY)
            tied = overlap == bits_overlap(tl.load(peaks + one), best.dtype)
            tied = open & tied if not mutant("target_peak") else open & (overlap < 0.0)
            found = tl.where(tied if not mutant("target_last_peak") else tied & (found < 0), one, found)
            one = following(g, near, one, count)
    return found
