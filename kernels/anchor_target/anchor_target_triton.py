"""anchor_target.cu in Triton: labels of anchors and the RPN's sample. None of the kernels waits for the host:
  overlap_kernel   best overlap and object of each anchor, peaks, and how many anchors may be negative
  label_kernel     (assign_anchors) labels
  target_kernel    (rpn_targets) labels into lists; the last program of an image draws and encodes
For labels from elsewhere, count_kernel counts the negatives and sample_kernel draws.

A program owns BLOCK anchors of an image (axis 1 of the grid). One of overlap_kernel is one warp, in which the peak of
an object needs no barrier; the programs that draw have WARPS. tallies [B, TALLY + G]: sample_triton's tally, then the
peaks (bits).
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..anchor_decode.anchor_decode_triton import scalars4
from ..common.box_triton import anchor_at, is_finite_box, load_box
from ..common.launch_triton import anchor_source, blocks_for, double_bits, launch, num_anchors
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, scalar
from .overlap_triton import is_inside, is_negative, is_positive, match_objects, on_crowd, peak_object
from .sample_triton import (
    NEGATIVES,
    ROWS,
    TALLY,
    draw,
    draw_item,
    enlist,
    is_last,
    is_likely,
    most_positive,
    seats,
    store_targets,
)

PEAKS = TALLY
# In place of a best overlap.
ABSENT = tl.constexpr(-1.0)  # takes no part
NO_OBJECT = tl.constexpr(-2.0)  # takes part, but nothing is there to overlap

OVERLAP_BLOCK = 64
LABEL_BLOCK = 256
COUNT_BLOCK = 4096
SAMPLE_BLOCK = 1024
WARPS = 4


@triton.jit(do_not_specialize=["image_stride", "offset", "A", "G", "positive_iou", "negative_iou", "crowd_overlap"])
def overlap_kernel(
    anchors, image_stride, levels, offset, A, gt_boxes, gt_counts, crowd, G, image_sizes, positive_iou, negative_iou,
    crowd_overlap, tallies, best, object, LEGACY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    U: tl.constexpr = compute_type(gt_boxes.dtype.element_ty)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    mask = index < A
    gt = gt_boxes, gt_counts, crowd, G
    tally = tallies + image * (G + PEAKS)
    box = anchor_at(anchors, image_stride, levels, scalar(offset, U), image, index, mask)
    takes_part = mask & is_finite_box(*box) if not mutant("target_finite_anchor") else mask
    if image_sizes is not None:
        takes_part = takes_part & is_inside(box, image_sizes + 2 * image, LEGACY)
    if crowd is not None and not mutant("target_crowd"):
        covered = on_crowd(box, gt, image, scalar(crowd_overlap, U), LEGACY)
        takes_part = takes_part & (covered == 0)
    highest, matched, any_object = match_objects(box, takes_part, gt, image, tally + PEAKS, LEGACY)
    low = (any_object == 0) | is_negative(highest, scalar(negative_iou, U))
    low = takes_part & low & (is_positive(highest, scalar(positive_iou, U)) == 0)
    tl.atomic_add(tally + NEGATIVES, tl.sum(low.to(tl.int64)), sem="relaxed")
    highest = tl.where(any_object == 0, NO_OBJECT, highest) if not mutant("target_no_object") else highest
    tl.store(best + image * A + index, tl.where(takes_part, highest, ABSENT), mask=mask)
    tl.store(object + image * A + index, matched, mask=mask)


@triton.jit
def find_labels(
    source, A, gt, positive_iou, negative_iou, min_quality, peaks, best, image, index, LEGACY: tl.constexpr,
    LOW_QUALITY: tl.constexpr, OVERWRITE: tl.constexpr,
):  # fmt: skip
    """The labels of a block of anchors: (positive, negative, own). source: the arguments of anchor_at. own: the last
    object whose best an anchor is, else -1; without OVERWRITE, only of anchors that nothing else makes positive."""
    mask = index < A
    found = tl.load(best + image * A + index, mask=mask, other=ABSENT)
    overlap = tl.where(found > 0.0, found, 0.0)
    positive = is_positive(overlap, positive_iou)
    own = tl.full(overlap.shape, -1, tl.int32)
    if LOW_QUALITY and not mutant("target_low_quality"):
        open = overlap > 0.0 if OVERWRITE else (overlap > 0.0) & (positive == 0)
        box = anchor_at(*source, image, index, mask)
        own = peak_object(box, overlap, open, gt, image, peaks, min_quality, LEGACY)
        positive = positive | (own >= 0)
    low = (found == NO_OBJECT) | is_negative(overlap, negative_iou)
    negative = (positive == 0) & (low if mutant("target_absent") else low & (found != ABSENT))
    return positive, negative, own


@triton.jit(do_not_specialize=["image_stride", "offset", "A", "G", "positive_iou", "negative_iou", "min_quality"])
def label_kernel(
    anchors, image_stride, levels, offset, A, gt_boxes, gt_counts, G, positive_iou, negative_iou, tallies, best,
    min_quality, labels, matched, LEGACY: tl.constexpr, LOW_QUALITY: tl.constexpr, OVERWRITE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    U: tl.constexpr = compute_type(gt_boxes.dtype.element_ty)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    mask = index < A
    positive, negative, own = find_labels(
        (anchors, image_stride, levels, scalar(offset, U)), A, (gt_boxes, gt_counts, None, G),
        scalar(positive_iou, U), scalar(negative_iou, U), scalar(min_quality, U),
        tallies + image * (G + PEAKS) + PEAKS, best, image, index, LEGACY, LOW_QUALITY, OVERWRITE,
    )  # fmt: skip
    row = image * A + index
    object = tl.load(matched + row, mask=mask & positive, other=-1)
    if OVERWRITE:
        object = tl.where(own >= 0, own, object)
    tl.store(labels + row, tl.where(positive, 1, tl.where(negative, 0, -1)).to(tl.int8), mask=mask)
    tl.store(matched + row, object, mask=mask)


@triton.jit(
    do_not_specialize=[
        "image_stride", "offset", "A", "G", "positive_iou", "negative_iou", "stream", "S", "max_positive", "wx", "wy",
        "ww", "wh",
    ]
)  # fmt: skip
def target_kernel(
    anchors, image_stride, levels, offset, A, gt_boxes, gt_counts, G, positive_iou, negative_iou, tallies, best,
    object, rng, stream, S, max_positive, wx, wy, ww, wh, kinds, items, winners, indices, labels, targets, matched,
    counts, LEGACY: tl.constexpr, LOW_QUALITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    U: tl.constexpr = compute_type(gt_boxes.dtype.element_ty)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    tally = tallies + image * (G + PEAKS)
    source = anchors, image_stride, levels, scalar(offset, U)
    positive, negative, _ = find_labels(
        source, A, (gt_boxes, gt_counts, None, G), scalar(positive_iou, U), scalar(negative_iou, U), 0.0, tally + PEAKS,
        best, image, index, LEGACY, LOW_QUALITY, False,
    )  # fmt: skip
    kind = tl.where(positive, 1, tl.where(negative, 0, -1)).to(tl.int8)
    tl.store(kinds + image * A + index, kind, mask=index < A)
    item = draw_item(rng, index, image, stream)
    likely = negative & is_likely(item, S, tl.load(tally + NEGATIVES))
    enlist(items + image * A, A, tally, item, positive, likely)
    if is_last(tally):
        drawn = draw(
            items + image * A, A, tally, kinds + image * A, rng, stream, image, S, max_positive, winners + image * S,
            counts + 2 * image,
        )  # fmt: skip
        for start in range(0, S, ROWS):
            row, winner, is_object, is_drawn = seats(winners + image * S, start, drawn)
            mask = row < S
            row = image * S + row
            chosen = tl.load(object + image * A + winner, mask=is_object, other=-1)
            gt_box = load_box(gt_boxes, image * G + chosen, is_object)
            anchor = anchor_at(*source, image, tl.where(is_object, winner, 0), is_object)
            store_targets(targets, row, gt_box, anchor, scalars4(wx, wy, ww, wh, U), is_object, mask, LEGACY)
            tl.store(indices + row, winner, mask=mask)
            tl.store(labels + row, tl.where(is_object, 1, tl.where(is_drawn, 0, -1)).to(tl.int8), mask=mask)
            tl.store(matched + row, chosen, mask=mask)


@triton.jit(do_not_specialize=["A"])
def count_kernel(labels, A, tallies, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    label = tl.load(labels + image * A + index, mask=index < A, other=-1)
    tl.atomic_add(tallies + image * TALLY + NEGATIVES, tl.sum((label == 0).to(tl.int32)).to(tl.int64), sem="relaxed")


@triton.jit(do_not_specialize=["A", "stream", "S", "max_positive"])
def sample_kernel(
    labels, A, tallies, rng, stream, S, max_positive, items, winners, indices, sampled, counts, BLOCK: tl.constexpr
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    tally = tallies + image * TALLY
    label = tl.load(labels + image * A + index, mask=index < A, other=-1)
    item = draw_item(rng, index, image, stream)
    likely = (label == 0) & is_likely(item, S, tl.load(tally + NEGATIVES))
    enlist(items + image * A, A, tally, item, label == 1, likely)
    if is_last(tally):
        drawn = draw(
            items + image * A, A, tally, labels + image * A, rng, stream, image, S, max_positive, winners + image * S,
            counts + 2 * image,
        )  # fmt: skip
        for start in range(0, S, ROWS):
            row, winner, is_object, is_drawn = seats(winners + image * S, start, drawn)
            mask = row < S
            tl.store(indices + image * S + row, winner, mask=mask)
            kind = tl.where(is_object, 1, tl.where(is_drawn, 0, -1))
            tl.store(sampled + image * S + row, kind.to(tl.int8), mask=mask)


def new_tallies(B: int, G: int, like: Tensor) -> Tensor:
    return torch.zeros((B, TALLY.value + G), dtype=torch.int64, device=like.device)


def label_block(like: Tensor) -> int:
    """Anchors per program that labels: one per thread in float64, where a division is a call with much to save."""
    return 32 * WARPS if like.dtype == torch.float64 else LABEL_BLOCK


def programs_for(candidates: int, each: int) -> int:
    """Programs per image: at least one, which draws."""
    return max(blocks_for(candidates, each), 1)


def find_overlaps(
    anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float, gt_boxes: Tensor, gt_counts: Tensor,
    crowd: Tensor | None, image_sizes: Tensor | None, positive_iou: float, negative_iou: float, crowd_overlap: float,
    legacy: bool, object: Tensor,
) -> tuple[Any, ...]:  # fmt: skip
    """The first arguments of label_kernel and of target_kernel. Fills object [B, A]."""
    (B, A), G = object.shape, gt_boxes.shape[1]
    source = anchor_source(anchors, anchor_grid, anchor_offset)
    ious = double_bits(positive_iou), double_bits(negative_iou)
    tallies, best = new_tallies(B, G, gt_boxes), gt_boxes.new_empty((B, A))
    if A:
        launch(
            overlap_kernel, (blocks_for(A, OVERLAP_BLOCK), B), *source, A, gt_boxes, gt_counts, crowd, G, image_sizes,
            *ious, double_bits(crowd_overlap), tallies, best, object, like=gt_boxes, warps=1, LEGACY=legacy,
            BLOCK=OVERLAP_BLOCK,
        )  # fmt: skip
    return *source, A, gt_boxes, gt_counts, G, *ious, tallies, best


def assign_anchors(
    anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float, gt_boxes: Tensor, gt_counts: Tensor,
    image_sizes: Tensor | None, crowd: Tensor | None, positive_iou: float, negative_iou: float, low_quality: bool,
    min_quality: float, overwrite: bool, crowd_overlap: float, legacy: bool, labels: Tensor, matched: Tensor,
) -> None:  # fmt: skip
    B, A = labels.shape
    if not B * A:
        return
    found = find_overlaps(
        anchors, anchor_grid, anchor_offset, gt_boxes, gt_counts, crowd, image_sizes, positive_iou, negative_iou,
        crowd_overlap, legacy, matched,
    )  # fmt: skip
    block = label_block(gt_boxes)
    launch(
        label_kernel, (blocks_for(A, block), B), *found, double_bits(min_quality), labels, matched, like=gt_boxes,
        warps=WARPS, registers=64, LEGACY=legacy, LOW_QUALITY=low_quality, OVERWRITE=overwrite, BLOCK=block,
    )  # fmt: skip


def sample_anchors(
    labels: Tensor, rng: Tensor, batch_size: int, positive_fraction: float, stream: int, indices: Tensor,
    out_labels: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    B, A = labels.shape
    if not B:
        return
    tallies = new_tallies(B, 0, labels)
    items = labels.new_empty((B, A), dtype=torch.int64)
    winners = labels.new_empty((B, batch_size), dtype=torch.int32)
    if A:
        launch(
            count_kernel, (blocks_for(A, COUNT_BLOCK), B), labels, A, tallies, like=labels, warps=WARPS,
            BLOCK=COUNT_BLOCK,
        )  # fmt: skip
    launch(
        sample_kernel, (programs_for(A, SAMPLE_BLOCK), B), labels, A, tallies, rng, stream, batch_size,
        most_positive(batch_size, positive_fraction), items, winners, indices, out_labels, counts, like=labels,
        warps=WARPS, registers=128, BLOCK=SAMPLE_BLOCK,
    )  # fmt: skip


def rpn_targets(
    anchors: Tensor, anchor_grid: Sequence[int], anchor_offset: float, gt_boxes: Tensor, gt_counts: Tensor,
    rng: Tensor, image_sizes: Tensor | None, crowd: Tensor | None, positive_iou: float, negative_iou: float,
    low_quality: bool, crowd_overlap: float, batch_size: int, positive_fraction: float, weights: Sequence[float],
    legacy: bool, stream: int, indices: Tensor, labels: Tensor, targets: Tensor, matched: Tensor, counts: Tensor,
) -> None:  # fmt: skip
    B, A = gt_boxes.shape[0], num_anchors(anchors, anchor_grid)
    if not B:
        return
    object = gt_boxes.new_empty((B, A), dtype=torch.int32)
    found = find_overlaps(
        anchors, anchor_grid, anchor_offset, gt_boxes, gt_counts, crowd, image_sizes, positive_iou, negative_iou,
        crowd_overlap, legacy, object,
    )  # fmt: skip
    block = label_block(gt_boxes)
    kinds, items = labels.new_empty((B, A)), indices.new_empty((B, A))
    launch(
        target_kernel, (programs_for(A, block), B), *found, object, rng, stream, batch_size,
        most_positive(batch_size, positive_fraction), *map(double_bits, weights), kinds, items,
        matched.new_empty((B, batch_size)), indices, labels, targets, matched, counts, like=gt_boxes, warps=WARPS,
        registers=96, LEGACY=legacy, LOW_QUALITY=low_quality, BLOCK=block,
    )  # fmt: skip
