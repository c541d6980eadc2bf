"""roi_targets.cu in Triton: the head's sample. One launch: a program owns BLOCK candidates (proposals or objects) of an
image (axis 1 of the grid) and labels them; the last program of an image draws and encodes."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..anchor_decode.anchor_decode_triton import scalars4
from ..common.box_triton import is_finite_box, load_box, store_box
from ..common.launch_triton import double_bits, launch
from ..common.mutant_triton import mutant
from ..common.numeric_triton import compute_type, scalar
from .anchor_target_triton import new_tallies, programs_for
from .overlap_triton import gt_count, is_negative, is_positive, match_objects, on_crowd
from .sample_triton import ROWS, TALLY, draw, draw_item, enlist, is_last, most_positive, seats, store_targets

BLOCK = 128
WARPS = 4


@triton.jit
def load_candidate(proposals, N, gt_boxes, G, image, index, mask):
    """Candidates of an image: the proposals, then the objects."""
    is_proposal = index < N
    x1, y1, x2, y2 = load_box(proposals, image * N + index, mask & is_proposal)
    gx1, gy1, gx2, gy2 = load_box(gt_boxes, image * G + index - N, mask & (index >= N))
    x1, y1 = tl.where(is_proposal, x1, gx1), tl.where(is_proposal, y1, gy1)
    x2, y2 = tl.where(is_proposal, x2, gx2), tl.where(is_proposal, y2, gy2)
    return x1, y1, x2, y2


@triton.jit(
    do_not_specialize=[
        "N", "G", "positive_iou", "negative_high", "negative_low", "crowd_overlap", "stream", "S", "max_positive",
        "wx", "wy", "ww", "wh",
    ]
)  # fmt: skip
def roi_kernel(
    proposals, proposal_counts, N, gt_boxes, gt_labels, gt_counts, crowd, G, positive_iou, negative_high, negative_low,
    crowd_overlap, rng, stream, S, max_positive, wx, wy, ww, wh, tallies, object, items, winners, rois, labels, targets,
    matched, counts, APPEND_GT: tl.constexpr, LEGACY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    U: tl.constexpr = compute_type(proposals.dtype.element_ty)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    M = N + G
    gt = gt_boxes, gt_counts, crowd, G
    tally = tallies + image * TALLY
    box = load_candidate(proposals, N, gt_boxes, G, image, index, index < M)
    count = tl.load(proposal_counts + image) if not mutant("roi_count") else N
    count = tl.where(count > N, 0, count) if not mutant("roi_count_range") else count
    takes_part = index < count
    if crowd is not None and not mutant("roi_crowd"):
        covered = on_crowd(box, gt, image, scalar(crowd_overlap, U), LEGACY)
        takes_part = takes_part & (covered == 0)
    if APPEND_GT:
        appended = (index >= N) & (index - N < gt_count(gt, image))
        if crowd is not None and not mutant("roi_append_crowd"):
            appended = appended & (tl.load(crowd + image * G + index - N, mask=appended, other=0) == 0)
        takes_part = takes_part | appended
    takes_part = takes_part & is_finite_box(*box) if not mutant("roi_finite") else takes_part
    best, found, _ = match_objects(box, takes_part, gt, image, None, LEGACY)
    positive = takes_part & is_positive(best, scalar(positive_iou, U))
    low = scalar(negative_low, U)
    above = best >= low if not mutant("roi_low_edge") else best > low
    negative = takes_part & above & is_negative(best, scalar(negative_high, U))
    if not mutant("roi_positive_first"):
        negative = negative & (positive == 0)
    tl.store(object + image * M + index, found, mask=positive)
    enlist(items + image * M, M, tally, draw_item(rng, index, image, stream), positive, negative)
    if is_last(tally):
        drawn = draw(
            items + image * M, M, tally, None, rng, stream, image, S, max_positive, winners + image * S,
            counts + 2 * image,
        )  # fmt: skip
        for start in range(0, S, ROWS):
            row, winner, is_object, is_drawn = seats(winners + image * S, start, drawn)
            mask = row < S
            row = image * S + row
            chosen = tl.load(object + image * M + winner, mask=is_object, other=-1)
            gt_box = load_box(gt_boxes, image * G + chosen, is_object)
            roi = load_candidate(proposals, N, gt_boxes, G, image, winner, is_drawn)
            store_box(rois, row, *roi, mask)
            store_targets(targets, row, gt_box, roi, scalars4(wx, wy, ww, wh, U), is_object, mask, LEGACY)
            label = tl.load(gt_labels + image * G + chosen, mask=is_object, other=0)
            tl.store(labels + row, tl.where(is_drawn, label, -1), mask=mask)
            tl.store(matched + row, chosen, mask=mask)


def sample_rois(
    proposals: Tensor, counts: Tensor, gt_boxes: Tensor, gt_labels: Tensor, gt_counts: Tensor, rng: Tensor,
    crowd: Tensor | None, batch_size: int, positive_fraction: float, positive_iou: float, negative_iou_high: float,
    negative_iou_low: float, append_gt: bool, crowd_overlap: float, weights: Sequence[float], legacy: bool, stream: int,
    rois: Tensor, labels: Tensor, targets: Tensor, matched: Tensor, out_counts: Tensor,
) -> None:  # fmt: skip
    B, G, _ = gt_boxes.shape
    if not B:
        return
    N = proposals.shape[1]
    items, object = labels.new_empty((B, N + G)), matched.new_empty((B, N + G))
    launch(
        roi_kernel, (programs_for(N + G, BLOCK), B), proposals, counts, N, gt_boxes, gt_labels, gt_counts, crowd, G,
        *map(double_bits, (positive_iou, negative_iou_high, negative_iou_low, crowd_overlap)), rng, stream, batch_size,
        most_positive(batch_size, positive_fraction), *map(double_bits, weights), new_tallies(B, 0, proposals), object,
        items, matched.new_empty((B, batch_size)), rois, labels, targets, matched, out_counts, like=proposals,
        warps=WARPS, APPEND_GT=append_gt, LEGACY=legacy, BLOCK=BLOCK,
    )  # fmt: skip
