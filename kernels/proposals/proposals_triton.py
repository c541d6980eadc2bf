"""proposals.cu in Triton: a fixed chain of launches over all images and levels.

judge     (filter_before_top_n only) does an anchor decode to a box that may compete? (kernels/anchor_decode)
top-N     every (image, level) segment's best pre_nms_top_n, in order (kernels/top_n)
decode    an element is a selected anchor: decode, clip, judge, count in each block what may compete
compact   (not filter_before_top_n: there all may) a block of ranks moves up by what the blocks before it have dropped
NMS       every segment by itself, up to post_nms_top_n (kernels/nms)
merge     an element is a kept box: its place among all levels of the image, by binary search in the other levels
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..anchor_decode.anchor_decode_triton import BLOCK, decode_at, decode_clip_kernel
from ..common.box_triton import load_box, store_box
from ..common.launch_triton import anchor_maps, anchor_source, blocks_for, double_bits, launch
from ..common.map_triton import map_at
from ..common.mutant_triton import mutant
from ..common.numeric_triton import widen
from ..nms.nms_triton import nms_sorted_segments
from ..top_n.top_n_triton import select_segments

# Powers of two.
RANKS = 128  # per program that decodes or moves: the deltas come from anywhere, so many small programs
KEPT = 128  # kept boxes per program that merges


@triton.jit(do_not_specialize=["image_stride", "offset", "wx", "wy", "ww", "wh", "clamp", "min_size", "L", "n"])
def decode_kernel(
    deltas, anchors, image_stride, levels, offset, image_sizes, wx, wy, ww, wh, clamp, min_size, image_scales,
    scores, selected, num_selected, L, n, boxes, rankings, valid, num_valid, LEGACY: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """A program owns RANKS ranks of a segment (axis 1 of the grid).

    selected [S, n] -> boxes [S, n, 4], rankings [S, n]: scores in the compute type; where not null, valid [S, n] and
    num_valid [S, blocks], one per program."""
    rank = tl.program_id(0) * RANKS + tl.arange(0, RANKS)
    segment = tl.program_id(1).to(tl.int64)
    image = segment // L
    level = (segment - image * L).to(tl.int32)
    row = segment * n + rank
    mask = rank < tl.load(num_selected + segment)
    index = tl.load(selected + row, mask=mask, other=0).to(tl.int64)
    x1, y1, x2, y2, fit = decode_at(
        deltas, anchors, image_stride, levels, offset, image_sizes, wx, wy, ww, wh, clamp, min_size, image_scales,
        image, level, index, mask, LEGACY,
    )  # fmt: skip
    store_box(boxes, row, x1, y1, x2, y2, mask)
    tl.store(rankings + row, widen(tl.load(map_at(scores, level, image, index), mask=mask, other=0.0)), mask=mask)
    if valid is not None:
        fit = fit & mask
        tl.store(valid + row, fit.to(tl.uint8), mask=mask)
        tl.store(num_valid + segment * tl.num_programs(0) + tl.program_id(0), tl.sum(fit.to(tl.int32), 0))


@triton.jit(do_not_specialize=["n"])
def compact_kernel(
    boxes, rankings, selected, valid, num_valid, num_selected, n, some_boxes, some_rankings, some_selected, num_boxes,
    RANKS: tl.constexpr,
):  # fmt: skip
    """What is valid of every segment, in order: some_boxes [S, n, 4], some_rankings and some_selected [S, n], num_boxes
    [S]. A program owns the ranks that one of decode_kernel decoded, and moves them."""
    block, blocks = tl.program_id(0), tl.num_programs(0)
    segment = tl.program_id(1).to(tl.int64)
    own = tl.arange(0, RANKS)
    before, first = 0, 0
    while first < block:
        there = first + own < block if not mutant("proposals_compact_place") else first + own < block - 1
        before += tl.sum(tl.load(num_valid + segment * blocks + first + own, mask=there, other=0), 0)
        first += RANKS
    rank = block * RANKS + own
    row = segment * n + rank
    mask = rank < tl.load(num_selected + segment)
    stays = tl.load(valid + row, mask=mask, other=0) != 0 if not mutant("proposals_competes") else mask
    to = segment * n + before + tl.cumsum(stays.to(tl.int32), 0) - 1
    x1, y1, x2, y2 = load_box(boxes, row, stays)
    store_box(some_boxes, to, x1, y1, x2, y2, stays)
    tl.store(some_rankings + to, tl.load(rankings + row, mask=stays), mask=stays)
    tl.store(some_selected + to, tl.load(selected + row, mask=stays), mask=stays)
    if block == blocks - 1:
        tl.store(num_boxes + segment, before + tl.sum(stays.to(tl.int32), 0))


@triton.jit(do_not_specialize=["L", "n", "k", "P", "first_step"])
def merge_kernel(
    scores, boxes, rankings, selected, keep, num_keep, L, n, k, P, first_step,
    out_boxes, out_scores, out_indices, out_counts, LEVELS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """A program owns KEPT kept boxes of an image (axis 1 of the grid).

    keep [S, k], num_keep [S] -> [B, P] results. Before the i-th kept box of a level come i of its own level, and of
    every other level those with a higher score, or with the same in a lower level. Elements beyond the last box write
    the padding. LEVELS: L or more; first_step: the greatest power of two that is no more than k."""
    image = tl.program_id(1).to(tl.int64)
    other = tl.arange(0, LEVELS)
    segments = image * L + other
    num_kept = tl.load(num_keep + segments, mask=other < L, other=0)
    total = tl.minimum(tl.sum(num_kept, 0), P) if not mutant("proposals_count") else tl.sum(num_kept, 0)
    element = tl.program_id(0) * KEPT + tl.arange(0, KEPT)
    if tl.program_id(0) == 0:
        tl.store(out_counts + image, total)

    level = element // k
    i = element - level * k
    segment = image * L + level
    mask = i < tl.load(num_keep + segment, mask=level < L, other=0)
    candidate = segment * n + tl.load(keep + segment * k + i, mask=mask, other=0)
    score = tl.load(rankings + candidate, mask=mask, other=0.0)[None, :]
    lower = other[:, None] < level[None, :] if not mutant("proposals_merge_ties") else other[:, None] > level[None, :]
    count = tl.where(other[:, None] == level[None, :], 0, num_kept[:, None])
    found = tl.zeros([LEVELS, KEPT], tl.int32)
    step = first_step
    while step > 0:
        probe = found | step
        there = (probe <= count if not mutant("proposals_merge_end") else probe < count) & mask[None, :]
        rank = tl.load(keep + (segments * k)[:, None] + probe - 1, mask=there, other=0)
        theirs = tl.load(rankings + (segments * n)[:, None] + rank, mask=there, other=0.0)
        found = tl.where(there & ((theirs > score) | ((theirs == score) & lower)), probe, found)
        step = step >> 1
    place = i + tl.sum(found, 0)
    mask = mask & (place < P if not mutant("proposals_room") else place < P - 1)
    row = image * P + place
    x1, y1, x2, y2 = load_box(boxes, candidate, mask)
    store_box(out_boxes, row, x1, y1, x2, y2, mask)
    index = tl.load(selected + candidate, mask=mask, other=0)
    tl.store(out_scores + row, tl.load(map_at(scores, level, image, index), mask=mask), mask=mask)
    tl.store(out_indices + row, index, mask=mask)

    padding = (element >= total if not mutant("proposals_padding") else element > total) & (element < P)
    row = image * P + element
    zero = tl.zeros([KEPT], out_boxes.dtype.element_ty)
    store_box(out_boxes, row, zero, zero, zero, zero, padding)
    tl.store(out_scores + row, tl.zeros([KEPT], out_scores.dtype.element_ty), mask=padding)
    tl.store(out_indices + row, tl.full([KEPT], -1, tl.int64), mask=padding)


def rpn_proposals(
    scores: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Tensor, anchor_grid: Sequence[int],
    anchor_offset: float, image_sizes: Tensor, image_scales: Tensor | None, level_sizes: Sequence[int],
    pre_nms_top_n: int, post_nms_top_n: int, iou_threshold: float, min_size: float, filter_before_top_n: bool,
    weights: Sequence[float], clamp: float, legacy: bool, boxes: Tensor, out_scores: Tensor, indices: Tensor,
    counts: Tensor,
) -> None:  # fmt: skip
    B, A, L, P = boxes.shape[0], sum(level_sizes), len(level_sizes), post_nms_top_n
    # No level gives more candidates than it has, none contributes more than P.
    n = min(pre_nms_top_n, max(level_sizes, default=0))
    S, k = B * L, min(n, P)
    if not S * n:
        for result in (boxes, out_scores, counts):
            result.zero_()
        indices.fill_(-1)
        return

    def integers(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return boxes.new_empty(shape, dtype=dtype)

    starts = list(accumulate(level_sizes, initial=0))
    score_maps = anchor_maps(scores, starts, 1)
    decoding = (
        anchor_maps(deltas, starts, 4), *anchor_source(anchors, anchor_grid, anchor_offset), image_sizes,
        *map(double_bits, weights), double_bits(clamp), double_bits(min_size), image_scales,
    )  # fmt: skip
    valid = None
    if filter_before_top_n:
        valid = integers(B, A, dtype=torch.uint8)
        launch(
            decode_clip_kernel, (blocks_for(A, BLOCK), B), *decoding, A, None, valid, like=boxes, LEGACY=legacy,
            BLOCK=BLOCK,
        )  # fmt: skip

    selected, num_selected = integers(S, n), integers(S)
    select_segments(scores, starts, n, valid, selected, num_selected)

    blocks = blocks_for(n, RANKS)
    candidates, rankings = boxes.new_empty((S, n, 4)), boxes.new_empty((S, n))
    fit, num_fit = (None, None) if filter_before_top_n else (integers(S, n, dtype=torch.uint8), integers(S, blocks))
    launch(
        decode_kernel, (blocks, S), *decoding, score_maps, selected, num_selected, L, n, candidates, rankings, fit,
        num_fit, like=boxes, LEGACY=legacy, RANKS=RANKS,
    )  # fmt: skip
    if not filter_before_top_n:
        some = torch.empty_like(candidates), torch.empty_like(rankings), torch.empty_like(selected)
        num_boxes = torch.empty_like(num_selected)
        launch(
            compact_kernel, (blocks, S), candidates, rankings, selected, fit, num_fit, num_selected, n,
            *some, num_boxes, like=boxes, RANKS=RANKS,
        )  # fmt: skip
        candidates, rankings, selected, num_selected = *some, num_boxes

    keep, num_keep = integers(S, k), integers(S)
    nms_sorted_segments(candidates, None, num_selected, iou_threshold, k, legacy, keep, num_keep)
    launch(
        merge_kernel, (blocks_for(max(L * k, P), KEPT), B), score_maps, candidates, rankings, selected, keep, num_keep,
        L, n, k, P, 1 << (k.bit_length() - 1), boxes, out_scores, indices, counts,
        like=boxes, LEVELS=triton.next_power_of_2(L), KEPT=KEPT,
    )  # fmt: skip
