"""detections.h and detections.cu in Triton: the last step, in a number of launches that shapes alone decide.

  score_kernel   softmax, and a score for every candidate whose box decodes to something valid
  top-N          the candidates of every image, sorted (kernels/top_n)
  decode_kernel  the boxes of those, by rank
  NMS            within the classes of every image, early exit at max_detections (kernels/nms)
  write_kernel   the results

Class k of row n, counted from 0 without the background, is candidate n * K + k; its logit is column FIRST_CLASS + k.
Scores of a row add up to 1, so that few of its classes are above the threshold: the sort is given room for those.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..anchor_decode.anchor_decode_triton import decode_into, load_window, scalars4
from ..common.box_triton import load_box, store_box
from ..common.launch_triton import blocks_for, double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, exp_, folded, scalar, widen
from ..nms.nms_triton import nms_sorted_segments
from ..top_n.top_n_triton import select_segments

LANES = 32  # partial sums of a row's softmax
ROWS = 32 if triton.knobs.runtime.interpret else 4  # per program of score_kernel; the interpreter pays per program
BLOCK = 256


@triton.jit
def decoded_box(
    deltas, proposals, image_sizes, weights, clamp, min_size, image, row, c, columns, mask,
    AGNOSTIC: tl.constexpr, LEGACY: tl.constexpr,
):  # fmt: skip
    """(x1, y1, x2, y2, valid): the box of that row, counted over all images, by the deltas in column c of so many.
    row, c, mask: one shape."""
    ax1, ay1, ax2, ay2 = load_box(proposals, row, mask)
    if AGNOSTIC:
        d0, d1, d2, d3 = load_box(deltas, row if not mutant("detect_agnostic") else row * columns, mask)
    else:
        d0, d1, d2, d3 = load_box(deltas, row * columns + c, mask)
    right, bottom, min_side = load_window(image_sizes, None, image, min_size, LEGACY)
    return decode_into(ax1, ay1, ax2, ay2, d0, d1, d2, d3, weights, clamp, right, bottom, min_side, LEGACY)


@triton.jit(do_not_specialize=["rows", "N", "classes", "threshold", "wx", "wy", "ww", "wh", "clamp", "min_size"])
def score_kernel(
    logits, deltas, proposals, counts, image_sizes, rows, N, classes, threshold, wx, wy, ww, wh, clamp, min_size,
    scores, FIRST_CLASS: tl.constexpr, AGNOSTIC: tl.constexpr, LEGACY: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """A program owns ROWS rows; lane l of a row adds classes l, l + LANES, ..., then the lanes are folded in halves.
    The powers are computed twice: there may be more classes than registers hold. scores: NaN where there is no
    candidate."""
    U: tl.constexpr = compute_type(logits.dtype.element_ty)
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    there = row < rows
    lane = tl.arange(0, LANES)[None, :]
    top = tl.full([ROWS, LANES], float("-inf"), U)
    for first in range(0, classes, LANES):
        c = first + lane
        logit = widen(tl.load(logits + (row * classes + c), mask=there & (c < classes), other=float("-inf")))
        top = tl.where(logit > top, logit, top)
    top = tl.max(top, axis=1)[:, None]
    power = tl.zeros([ROWS, LANES], U)
    for first in range(0, classes, LANES):
        c = first + lane
        logit = widen(tl.load(logits + (row * classes + c), mask=there & (c < classes), other=float("-inf")))
        power += exp_(logit - top)
    total = folded(power, LANES)[:, None]

    image = tl.where(there, row, 0) // N
    count = tl.load(counts + image) if not mutant("detect_counts") else N
    count = tl.where(count > N, 0, count) if not mutant("detect_count_range") else count
    exists = there & (row - image * N < count)
    weights = scalars4(wx, wy, ww, wh, U)
    for first in range(0, classes, LANES):
        c = first + lane
        k = c - FIRST_CLASS
        mask = there & (k >= (0 if not mutant("detect_background") else 1)) & (k < classes - 1)
        logit = widen(tl.load(logits + (row * classes + c), mask=mask, other=float("-inf")))
        score = divide(exp_(logit - top), total)
        least = scalar(threshold, U)
        candidate = mask & exists & (score > least if not mutant("detect_threshold") else score >= least)
        _, _, _, _, valid = decoded_box(
            deltas, proposals, image_sizes, weights, scalar(clamp, U), scalar(min_size, U), image,
            row + tl.zeros_like(c), c, classes - 1 + FIRST_CLASS, candidate, AGNOSTIC, LEGACY,
        )  # fmt: skip
        found = tl.where(candidate & valid if not mutant("detect_valid") else candidate, score, float("nan"))
        tl.store(scores + (row * (classes - 1) + k), found, mask=mask)


@triton.jit(do_not_specialize=["N", "K", "ranks", "wx", "wy", "ww", "wh", "clamp"])
def decode_kernel(
    deltas, proposals, image_sizes, order, N, K, ranks, wx, wy, ww, wh, clamp, boxes, class_ids,
    FIRST_CLASS: tl.constexpr, AGNOSTIC: tl.constexpr, LEGACY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK ranks of an image (axis 1 of the grid)."""
    U: tl.constexpr = compute_type(deltas.dtype.element_ty)
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    candidate = tl.load(order + image * ranks + i, mask=i < ranks, other=-1)
    mask = candidate >= 0
    n = tl.where(mask, candidate, 0) // K
    k = candidate - n * K
    x1, y1, x2, y2, _ = decoded_box(
        deltas, proposals, image_sizes, scalars4(wx, wy, ww, wh, U), scalar(clamp, U), 0.0, image,
        image * N + n, k + FIRST_CLASS, K + FIRST_CLASS, mask, AGNOSTIC, LEGACY,
    )  # fmt: skip
    store_box(boxes, image * ranks + i, x1, y1, x2, y2, mask)
    tl.store(class_ids + image * ranks + i, (k if not mutant("detect_class") else k * 0).to(tl.int64), mask=mask)


@triton.jit(do_not_specialize=["candidates", "K", "ranks", "D"])
def write_kernel(
    all_scores, all_boxes, order, keep, num_keep, candidates, K, ranks, D, boxes, scores, labels, indices,
    counts, FIRST_CLASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program owns BLOCK rows of the result of an image (axis 1 of the grid)."""
    image = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rank = tl.load(keep + image * D + i, mask=i < D, other=-1)
    kept = rank >= 0
    x1, y1, x2, y2 = load_box(all_boxes, image * ranks + rank, kept)
    candidate = tl.load(order + image * ranks + rank, mask=kept, other=0)
    score = tl.load(all_scores + image * candidates + candidate, mask=kept, other=0.0)
    store_box(boxes, image * D + i, x1, y1, x2, y2, i < D)
    tl.store(scores + image * D + i, score, mask=i < D)
    label = candidate % K + (FIRST_CLASS if not mutant("detect_label") else 0)
    tl.store(labels + image * D + i, tl.where(kept, label, -1).to(tl.int64), mask=i < D)
    row = candidate // K if not mutant("detect_row") else candidate
    tl.store(indices + image * D + i, tl.where(kept, row, -1).to(tl.int64), mask=i < D)
    if tl.program_id(0) == 0:
        tl.store(counts + image, tl.load(num_keep + image).to(tl.int64))


def most_candidates(N: int, K: int, threshold: float) -> int:
    """How many an image can have: a row's scores add up to 1, so fewer than 1 / threshold of them are above it. The
    factor is for their rounding."""
    return N * (int(min(K, 1.001 / threshold)) if threshold > 0 else K)


def detections(
    class_logits: Tensor, box_deltas: Tensor, proposals: Tensor, counts: Tensor, image_sizes: Tensor,
    score_threshold: float, iou_threshold: float, max_detections: int, min_size: float, weights: Sequence[float],
    clamp: float, background_last: bool, legacy: bool, boxes: Tensor, scores: Tensor, labels: Tensor,
    indices: Tensor, out_counts: Tensor,
) -> None:  # fmt: skip
    B, N, classes = class_logits.shape
    K, D = classes - 1, max_detections
    if N * K >= 1 << 31:
        raise ValueError(f"class_logits: expected fewer than 2^31 candidates an image, got {N} boxes of {K} classes")
    ranks = most_candidates(N, K, score_threshold)
    if ranks == 0 or D == 0:
        for result, padding in ((boxes, 0), (scores, 0), (labels, -1), (indices, -1), (out_counts, 0)):
            result.fill_(padding)
        return
    if B == 0:
        return

    def integers(*shape: int) -> Tensor:
        return counts.new_empty(shape, dtype=torch.int32)

    agnostic = box_deltas.shape[2] == 4  # and K > 0 here
    layout = {"FIRST_CLASS": 0 if background_last else 1}
    parameters = (*map(double_bits, weights), double_bits(clamp))
    all_scores = scores.new_empty((B, N * K))
    launch(
        score_kernel, (blocks_for(B * N, ROWS),), class_logits, box_deltas, proposals, counts, image_sizes, B * N,
        N, classes, double_bits(score_threshold), *parameters, double_bits(min_size), all_scores,
        like=scores, **layout, AGNOSTIC=agnostic, LEGACY=legacy, ROWS=ROWS, LANES=LANES,
    )  # fmt: skip
    order, num_ranked = integers(B, ranks), integers(B)
    select_segments([all_scores], (0, N * K), ranks, None, order, num_ranked)
    all_boxes, class_ids = boxes.new_empty((B, ranks, 4)), labels.new_empty((B, ranks))
    launch(
        decode_kernel, (blocks_for(ranks, BLOCK), B), box_deltas, proposals, image_sizes, order, N, K, ranks,
        *parameters, all_boxes, class_ids, like=scores, **layout, AGNOSTIC=agnostic, LEGACY=legacy, BLOCK=BLOCK,
    )  # fmt: skip
    keep, num_keep = integers(B, D), integers(B)
    nms_sorted_segments(all_boxes, class_ids, num_ranked, iou_threshold, D, legacy, keep, num_keep)
    launch(
        write_kernel, (blocks_for(D, BLOCK), B), all_scores, all_boxes, order, keep, num_keep, N * K, K, ranks, D,
        boxes, scores, labels, indices, out_counts, like=scores, **layout, BLOCK=BLOCK,
    )  # fmt: skip
