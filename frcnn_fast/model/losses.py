"""The multi-task losses of the two stages. All shapes are fixed; padded rows (label -1) weigh nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from frcnn_fast import ops

# torchvision's names of the losses that a detector returns in training.
RPN_LOSSES = ("loss_objectness", "loss_rpn_box_reg")
ROI_LOSSES = ("loss_classifier", "loss_box_reg")


def rpn_losses(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    indices: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    n_cls: float,
    n_reg: float,
    weight: float = 10.0,
    beta: float = 1 / 9,
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of the proposal network (Ren et al. eq. 1), averaged over the images.

    Args:
        logits: maps [B, k, H, W] of the objectness, one a level, as `ops.gather_anchors` takes them.
        deltas: maps [B, 4k, H, W].
        indices: int64 [B, S], the sampled anchors, -1 where there is none.
        labels: int8 [B, S], 1 object, 0 background, -1 padding.
        targets: [B, S, 4] regression targets, used where the label is 1.
        n_cls, n_reg: what the two sums of one image are divided by.
        weight: lambda, the box term's weight.
        beta: where smooth L1 turns from square to linear; 0 is plain L1.

    Returns:
        (objectness loss, weight * box loss), scalars.
    """
    batch = len(indices)
    scores = _selected(_wide(ops.gather_anchors(logits, indices)[..., 0]), labels >= 0)
    positive = labels == 1
    objectness = F.binary_cross_entropy_with_logits(scores, positive.to(scores.dtype), reduction="none")
    objectness = _selected(objectness, labels >= 0).sum() / (batch * n_cls)
    of_objects = _selected(_wide(ops.gather_anchors(deltas, indices, 4)), positive[..., None])
    boxes = F.smooth_l1_loss(of_objects, targets.to(of_objects.dtype), beta=beta, reduction="none").sum(-1)
    return objectness, _selected(boxes, positive).sum() * (weight / (batch * n_reg))


def _wide(values: Tensor) -> Tensor:
    """Losses are computed in float32, of doubles in float64."""
    return values if values.dtype == torch.float64 else values.float()


def _selected(values: Tensor, where: Tensor) -> Tensor:
    """0 elsewhere, in the gradient too. A product would make NaN of an infinity that does not count."""
    return values.where(where, values.new_zeros(()))


def head_losses(
    class_logits: Tensor,
    box_deltas: Tensor,
    labels: Tensor,
    targets: Tensor,
    *,
    beta: float = 1.0,
    mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy over K + 1 classes and smooth L1 on the true class' box (Girshick 2015, §2.3).

    Args:
        class_logits: [B, S, K+1].
        box_deltas: [B, S, 4(K+1)], or [B, S, 4] shared by the classes.
        labels: int64 [B, S], 0 background, -1 padding.
        targets: [B, S, 4], used where the label is at least 1.
        beta: as in `rpn_losses`.
        mean_over_ranks: makes of a number its mean over all processes that share a mini-batch. With it the mean of
            their losses is the loss of the whole batch, however the sampled regions are spread.

    Returns:
        (class loss, box loss): both sums are divided by the number of sampled regions.
    """
    labels = labels.flatten()
    sampled = (labels >= 0).sum()
    if mean_over_ranks is not None:
        sampled = mean_over_ranks(sampled)
    sampled = sampled.clamp(min=1)
    logits = _selected(_wide(class_logits.flatten(0, 1)), labels[:, None] >= 0)
    classes = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / sampled
    deltas = _wide(box_deltas.reshape(labels.numel(), -1, 4))
    if deltas.shape[1] > 1:
        row = labels.clamp(min=0)[:, None, None].expand(-1, 1, 4)
        deltas = deltas.gather(1, row)
    positive = labels > 0
    chosen = _selected(deltas[:, 0], positive[:, None])
    boxes = F.smooth_l1_loss(chosen, targets.flatten(0, 1).to(chosen.dtype), beta=beta, reduction="none").sum(-1)
    return classes, _selected(boxes, positive).sum() / sampled
