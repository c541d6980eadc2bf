"""The proposal step: thousands of scored anchors in, a few hundred boxes out, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import reference
from frcnn_fast.ops._arrays import accepts_arrays
from frcnn_fast.ops._checks import (
    check_positive,
    check_threshold,
    check_weights,
    compute_dtype,
    image_scales_tensor,
    image_sizes_tensor,
)
from frcnn_fast.ops._maps import check_head
from frcnn_fast.ops._operator import Operator
from frcnn_fast.ops.anchor_decode import DELTA_CLAMP
from frcnn_fast.ops.anchors import AnchorGrids, AnchorSource
from frcnn_fast.ops.results import Proposals

FILTER_ORDERS = ("before_top_n", "after_top_n")


@accepts_arrays
def rpn_proposals(
    scores: Tensor | Sequence[Tensor],
    deltas: Tensor | Sequence[Tensor],
    anchors: Tensor | AnchorGrids,
    image_sizes: Tensor | Sequence[Sequence[float]],
    *,
    image_scales: Tensor | None = None,
    level_sizes: Sequence[int] | None = None,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    iou_threshold: float = 0.7,
    min_size: float = 0.0,
    filter_order: str = "after_top_n",
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = DELTA_CLAMP,
    legacy: bool = False,
    backend: str | None = None,
) -> Proposals:
    """Proposals of a batch of images over all feature levels (Ren et al., section 3.3).

    Every level ranks its scores and takes the best `pre_nms_top_n`; those are decoded and clipped to the image, boxes
    with a side below `min_size` are dropped, greedy NMS runs within the level, and over all levels the best
    `post_nms_top_n` remain. Scores are ranked as they come: pass logits (a saturated sigmoid makes ties).

    Args:
        scores: [B, A], level after level; within a level (y, x, anchor of the cell). Or what an RPN's head gives, read
            where it lies: a list of maps [B, k, H, W], one a level, with any strides (channels_last, slices).
        deltas: [B, A, 4] (dx, dy, dw, dh), or a list of maps [B, 4k, H, W], an anchor's four channels side by side;
            same dtype: float16, bfloat16, float32 or float64.
        anchors: `AnchorGrids` (anchors are made from their index inside the kernel), or a tensor [A, 4] or [B, A, 4] in
            pixels, in the precision of the scores (float64 for float64, else float32; halves are widened).
        image_sizes: [B, 2] (height, width) in pixels, without padding: boxes are clipped to [0, width] and [0, height]
            (`legacy`: to width - 1 and height - 1).
        image_scales: [B], resized / original, by which `min_size` is multiplied.
        level_sizes: anchors a level, for given anchors of several levels; `AnchorGrids` and maps know theirs.
        pre_nms_top_n: candidates a level (the paper: 12,000 in training, 6,000 at test).
        post_nms_top_n: P, proposals an image (the paper: 2,000 and 300).
        iou_threshold: a box is dropped when its IoU with a better kept box of its level is strictly greater.
        min_size: smallest side in pixels, times `image_scales[b]` where given.
        filter_order: "before_top_n": small boxes do not compete (the paper's code); "after_top_n": they take their
            place among the `pre_nms_top_n` and are dropped then (torchvision, detectron2).
        weights: of the deltas (wx, wy, ww, wh). clamp: upper bound of dw and dh before exp.
        legacy: inclusive pixels: every extent is high - low + 1.

    Returns:
        `Proposals`: boxes [B, P, 4] in the compute dtype; scores [B, P] in the input's dtype; indices [B, P] int64, the
        anchors the boxes came from; counts [B] int64. Rows beyond an image's count hold 0 (indices -1). Sorted by
        score, ties by lower anchor index. A NaN score and a box that decodes to a non-finite coordinate are never
        selected; -0.0 ties 0.0; infinite scores are ordinary. No level or image, or A = 0, gives counts of 0.

    One exact answer on every backend; deterministic. No gradient flows through (approximate joint training). No host
    synchronisation on CUDA. Time O(A) for the ranking plus, for the depth needed to keep P boxes, candidates x kept.

    Raises:
        TypeError, ValueError: wrong shapes, dtypes, devices, or a negative threshold or size.
    """
    own_scores, own_deltas, sizes = check_head("scores", scores, deltas)
    like, A, tables = own_scores[0], sum(sizes), isinstance(scores, Tensor)
    B = like.shape[0]
    source = AnchorSource.of(anchors, like, B, A)
    if isinstance(anchors, AnchorGrids):
        if not tables and sizes != anchors.level_sizes:
            raise ValueError(f"anchors: expected levels of {sizes} anchors, as the maps have, got {anchors}")
        sizes = anchors.level_sizes
    elif level_sizes is not None:
        given = [check_positive("level_sizes", size, zero=True) for size in level_sizes]
        if tables and sum(given) != A:
            raise ValueError(f"level_sizes: expected sizes that add up to the {A} anchors, got {given} = {sum(given)}")
        if not tables and given != sizes:
            raise ValueError(f"level_sizes: expected those of the maps, {sizes}, got {given}")
        sizes = given
    if filter_order not in FILTER_ORDERS:
        raise ValueError(f"filter_order: expected one of {', '.join(FILTER_ORDERS)}, got {filter_order!r}")
    return _rpn_proposals(
        own_scores,
        own_deltas,
        *source,
        image_sizes_tensor(image_sizes, B, like),
        image_scales_tensor(image_scales, B, like),
        sizes,
        check_positive("pre_nms_top_n", pre_nms_top_n),
        check_positive("post_nms_top_n", post_nms_top_n),
        check_threshold("iou_threshold", iou_threshold),
        check_threshold("min_size", min_size),
        filter_order == "before_top_n",
        check_weights(weights),
        float(clamp),
        bool(legacy),
        backend=backend,
    )


def _outputs(a: Any) -> tuple[Tensor, ...]:
    scores, P = a.scores[0], a.post_nms_top_n
    B = scores.shape[0]
    return (
        scores.new_empty(B, P, 4, dtype=compute_dtype(scores)),
        scores.new_empty(B, P),
        scores.new_empty(B, P, dtype=torch.int64),
        scores.new_empty(B, dtype=torch.int64),
    )


_rpn_proposals = Operator(
    "rpn_proposals(Tensor[] scores, Tensor[] deltas, Tensor anchors, SymInt[] anchor_grid, float anchor_offset, "
    "Tensor image_sizes, Tensor? image_scales, SymInt[] level_sizes, int pre_nms_top_n, int post_nms_top_n, "
    "float iou_threshold, float min_size, bool filter_before_top_n, float[] weights, float clamp, bool legacy) "
    "-> (Tensor boxes, Tensor scores, Tensor indices, Tensor counts)",
    outputs=_outputs,
    workspace=lambda C, a: C.rpn_proposals_workspace(
        a.scores, a.level_sizes, a.pre_nms_top_n, a.post_nms_top_n, a.filter_before_top_n
    ),
    oracle=reference.rpn_proposals,
    triton="proposals.proposals_triton:rpn_proposals",
    returns=Proposals,
)
