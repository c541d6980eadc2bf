"""soft_nms.cu in Triton: one launch, a program an image. A program owns the image's rows, BLOCK at a time: after each
kept box it lowers their scores, in global memory that no other program touches, and finds the best of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.box_triton import area, iou, is_finite_box, load_box
from ..common.launch_triton import double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, divide, exp_, scalar, widen

BLOCK = 64 if triton.knobs.runtime.interpret else 1024  # small cases have several blocks
OUT_OF_PLAY = tl.constexpr(-1.0)  # the score of a row that is kept already or takes no part


@triton.jit
def in_play(score, score_threshold):
    return score > score_threshold if not mutant("soft_score") else score >= score_threshold


@triton.jit
def soft_weight(overlap, iou_threshold, sigma, METHOD: tl.constexpr):
    """The weight of a score whose box has that IoU with the kept one. An IoU of 0/0 lowers nothing."""
    if METHOD == "gaussian":
        weight = exp_(divide(-(overlap * overlap), sigma + tl.zeros_like(overlap)))
        return tl.where(overlap > 0.0, weight, 1.0) if not mutant("soft_no_area") else weight
    else:
        lowers = overlap > iou_threshold if not mutant("soft_threshold") else overlap >= iou_threshold
        return tl.where(lowers, 1.0 - overlap if METHOD == "linear" else tl.zeros_like(overlap), 1.0)


@triton.jit
def better(score, row, best_score, best_row, N):
    """The best of a block of rows and of what came before it: the highest score, the first row of equals."""
    highest = tl.max(score)
    first = tl.min(tl.where(score == highest, row, N))
    wins = highest > best_score if not mutant("soft_tie") else highest >= best_score
    return tl.where(wins, highest, best_score), tl.where(wins, first, best_row)


@triton.jit(do_not_specialize=["N", "iou_threshold", "sigma", "score_threshold", "max_output"])
def soft_nms_kernel(
    boxes, scores, counts, N, iou_threshold, sigma, score_threshold, max_output, current, keep, kept_scores, num_keep,
    METHOD: tl.constexpr, LEGACY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    U: tl.constexpr = compute_type(boxes.dtype.element_ty)
    iou_threshold, sigma = scalar(iou_threshold, U), scalar(sigma, U)
    score_threshold = scalar(score_threshold, U)
    image = tl.program_id(0).to(tl.int64)
    count = N.to(tl.int64)
    if counts is not None and not mutant("soft_counts"):
        found = tl.load(counts + image)
        count = tl.where((found < 0) | (found > N), 0, found)
    first_row = image * N
    nothing = tl.sum(tl.zeros((BLOCK,), U)) + OUT_OF_PLAY
    no_row = count * 0 + N

    score, row = nothing, no_row
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        box = load_box(boxes, first_row + i, i < count)
        value = widen(tl.load(scores + first_row + i, mask=i < count, other=0.0))
        plays = (i < count) & in_play(value, score_threshold)
        plays = plays & is_finite_box(*box) if not mutant("soft_non_finite") else plays
        value = tl.where(plays, value, OUT_OF_PLAY)
        tl.store(current + first_row + i, value, mask=i < count)
        score, row = better(value, i, score, row, no_row)
    kept = count * 0
    while (kept < max_output) & (score > OUT_OF_PLAY):
        tl.store(keep + image * max_output + kept, row)
        tl.store(kept_scores + image * max_output + kept, score)
        kept += 1
        best, best_row = load_box(boxes, first_row + row, row < N), row
        best_area = area(*best, LEGACY)
        score, row = nothing, no_row
        tl.debug_barrier()  # the scores as they are now, before they are read
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK).to(tl.int64)
            box = load_box(boxes, first_row + i, i < count)
            value = tl.load(current + first_row + i, mask=i < count, other=OUT_OF_PLAY)
            overlap = iou(*best, best_area, *box, area(*box, LEGACY), LEGACY)
            lowered = value * soft_weight(overlap, iou_threshold, sigma, METHOD)
            plays = (value > OUT_OF_PLAY) & in_play(lowered, score_threshold)
            plays = plays & (i != best_row) if not mutant("soft_again") else plays
            lowered = tl.where(plays, lowered, OUT_OF_PLAY)
            tl.store(current + first_row + i, lowered, mask=i < count)
            score, row = better(lowered, i, score, row, no_row)
    tl.store(num_keep + image, kept)
    for start in range(kept, max_output, BLOCK):
        i = start + tl.arange(0, BLOCK).to(tl.int64)
        tl.store(keep + image * max_output + i, tl.full((BLOCK,), -1, tl.int64), mask=i < max_output)
        tl.store(kept_scores + image * max_output + i, tl.zeros((BLOCK,), U), mask=i < max_output)


def soft_nms(
    boxes: Tensor, scores: Tensor, counts: Tensor | None, iou_threshold: float, sigma: float, score_threshold: float,
    max_output: int, method: str, legacy: bool, keep: Tensor, kept_scores: Tensor, num_keep: Tensor,
) -> None:  # fmt: skip
    B, N = scores.shape
    if N >= (1 << 31) - 1:
        raise ValueError(f"boxes: expected fewer than 2^31 - 1 an image, got {N}")
    if B == 0:
        return
    compute = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    current = boxes.new_empty((B, N), dtype=compute)
    launch(
        soft_nms_kernel, (B,), boxes, scores, counts, N, double_bits(iou_threshold), double_bits(sigma),
        double_bits(score_threshold), max_output, current, keep, kept_scores, num_keep, like=boxes,
        METHOD=method, LEGACY=legacy, BLOCK=BLOCK,
    )  # fmt: skip
