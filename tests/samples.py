"""One small, ordinary call of every public op: what compile, export, opcheck and graph-capture tests run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frcnn_fast import ops

# What is called through the operator of another name.
OPERATOR_OF = {
    f"{kind}_box_iou{tail}": operator
    for kind in ("generalized", "distance", "complete")
    for tail, operator in (("", "pairwise_iou"), ("_loss", "iou_loss"))
}


def operator_of(name: str) -> str:
    """The operator of a public op."""
    return OPERATOR_OF.get(name, name)


@dataclass
class Sample:
    """A call: tensors are the inputs that a compiled or captured function takes."""

    function: Callable[..., Any]
    tensors: list[Tensor]
    scalars: dict[str, Any] = field(default_factory=dict)
    dynamic: bool = False  # the result's shape depends on the data

    def __call__(self, *tensors: Tensor) -> Any:
        return self.function(*(tensors or self.tensors), **self.scalars)


def boxes(generator: torch.Generator, *size: int, high: float = 96.0) -> Tensor:
    """Random boxes of up to a third of the image."""
    corner = torch.rand(*size, 2, generator=generator) * high * 0.7
    side = torch.rand(*size, 2, generator=generator) * high * 0.3 + 1
    return torch.cat([corner, corner + side], -1)


def samples(device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Sample]:
    """A sample an op, by name."""
    g = torch.Generator().manual_seed(7)
    B, N, G = 2, 48, 4
    cells = ops.generate_anchors((16, 32), (0.5, 1.0), convention="torchvision").to(device)
    grids = ops.AnchorGrids([(cells, (6, 6), (16, 16))])
    A = grids.num_anchors
    table = grids.materialize().to(_compute(dtype))

    def t(value: Tensor, kind: torch.dtype = dtype) -> Tensor:
        return value.to(device=device, dtype=kind)

    box, scores = t(boxes(g, B, N)), t(torch.randn(B, N, generator=g))
    ids = t(torch.randint(0, 3, (B, N), generator=g), torch.int64)
    gt_boxes, gt_counts = t(boxes(g, B, G), _compute(dtype)), t(torch.tensor([G, 2]), torch.int64)
    gt_labels = t(torch.randint(1, 4, (B, G), generator=g), torch.int64)
    counts = t(torch.tensor([N, N - 5]), torch.int64)
    rng = t(torch.tensor([3, 1]), torch.int64)
    sizes = t(torch.tensor([[96, 96], [90, 80]]), _compute(dtype))
    logits, deltas = t(torch.randn(B, A, generator=g)), t(torch.randn(B, A, 4, generator=g) * 0.2)
    image = t(torch.randn(B, 8, 12, 12, generator=g))
    rois = torch.cat([t(torch.arange(6).remainder(B)[:, None], _compute(dtype)), t(boxes(g, 6), _compute(dtype))], 1)
    rois = rois.to(dtype)
    labels = t(torch.randint(-1, 2, (B, A), generator=g), torch.int8)
    smaller = t(torch.randn(B, 8, 6, 6, generator=g))
    rows = t(torch.randint(-1, 360, (B, 16), generator=g), torch.int64)
    class_logits, box_deltas = t(torch.randn(B, N, 4, generator=g)), t(torch.randn(B, N, 16, generator=g) * 0.3)
    proposals = t(boxes(g, B, N), _compute(dtype))
    per_level = {"pre_nms_top_n": 60, "post_nms_top_n": 20}
    return {
        "grid_anchors": Sample(ops.grid_anchors, [cells], {"grid_size": (6, 6), "stride": 16}),
        "decode_clip": Sample(ops.decode_clip, [deltas, table, sizes], {"min_size": 4.0}),
        "encode": Sample(ops.encode, [gt_boxes, gt_boxes + 1.5]),
        "top_n": Sample(ops.top_n, [scores], {"n": 12}),
        "box_iou": Sample(ops.box_iou, [box[0], box[1]]),
        **{name: Sample(getattr(ops, name), [box[0], box[0] + box[1] * 0.1]) for name in OPERATOR_OF},
        "sigmoid_focal_loss": Sample(ops.sigmoid_focal_loss, [logits, (logits > 0.5).to(dtype)], {"gamma": 1.5}),
        "nms": Sample(ops.nms, [box[0], scores[0]], {"iou_threshold": 0.4}, dynamic=True),
        "batched_nms": Sample(ops.batched_nms, [box[0], scores[0], ids[0]], {"iou_threshold": 0.4}, dynamic=True),
        "nms_padded": Sample(ops.nms_padded, [box, scores], {"iou_threshold": 0.4, "max_output": 16}),
        "soft_nms": Sample(ops.soft_nms, [box, scores.sigmoid()], {"max_output": 16, "method": "gaussian"}),
        "gather_anchors": Sample(
            lambda a, b, i, **k: ops.gather_anchors([a, b], i, **k), [image, smaller, rows], {"values": 4}
        ),
        "rpn_proposals": Sample(ops.rpn_proposals, [logits, deltas, table, sizes], per_level),
        "assign_anchors": Sample(ops.assign_anchors, [table, gt_boxes, gt_counts]),
        "sample_anchors": Sample(ops.sample_anchors, [labels, rng], {"batch_size": 32, "positive_fraction": 0.25}),
        "rpn_targets": Sample(
            ops.rpn_targets, [table, gt_boxes, gt_counts, rng], {"batch_size": 32, "positive_fraction": 0.25}
        ),
        "sample_rois": Sample(
            ops.sample_rois, [proposals, counts, gt_boxes, gt_labels, gt_counts, rng], {"batch_size": 16}
        ),
        "roi_pool": Sample(ops.roi_pool, [image, rois], {"output_size": 3, "spatial_scale": 0.125}),
        "roi_align": Sample(
            ops.roi_align, [image, rois], {"output_size": 3, "spatial_scale": 0.125, "sampling_ratio": 2}
        ),
        "prroi_pool": Sample(ops.prroi_pool, [image, rois], {"output_size": 3, "spatial_scale": 0.125}),
        "multiscale_roi_align": Sample(
            lambda a, b, r, **k: ops.multiscale_roi_align([a, b], r, **k),
            [image, smaller, rois],
            {"spatial_scales": (0.125, 0.0625), "output_size": 3, "sampling_ratio": 2, "canonical_scale": 32},
        ),
        "detections": Sample(
            ops.detections, [class_logits, box_deltas, proposals, counts, sizes], {"max_detections": 20}
        ),
    }


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
