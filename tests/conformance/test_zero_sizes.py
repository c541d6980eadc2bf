"""Every launcher with each of its sizes zero: the CUDA kernels, in the SIMT harness, give what the oracle gives.

A launch of no blocks is an error in CUDA, and a division by a size that is zero ends the process: both only show where
the size is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.simt.backend import missing_reason

from .backends import BACKENDS, Backend
from .harness import Args, Case, Op, assert_conforms, expected, inputs, run
from .suite import BY_NAME, OPS

# By op: the case that is cut down, and the size of every dimension of its arguments. "B<N": a count of at most N for
# each of B. "K1": one more than K; "K4": four times that. "R@B": of each of R the image, one of B, in front.
SIZES: dict[str, tuple[str, dict[str, str]]] = {
    "grid_anchors": ("3x5-offset-0.0", {"cell_anchors": "k 4"}),
    "decode_clip": ("f32-ordinary", {"deltas": "B A 4", "anchors": "A 4", "image_sizes": "B 2"}),
    "decode_clip_backward": ("f32", {"deltas": "B A 4", "anchors": "A 4", "image_sizes": "B 2", "grad": "B A 4"}),
    "encode": ("legacy", {"gt_boxes": "N 4", "anchors": "N 4"}),
    "top_n": ("many-rows", {"scores": "B N", "n": "n"}),
    "box_iou": ("strided", {"boxes1": "N 4", "boxes2": "M 4"}),
    "box_iou_backward": ("33x65", {"boxes1": "N 4", "boxes2": "M 4", "grad": "N M"}),
    **{
        f"{kind}_box_iou{tail}": ("strided", {"boxes1": "N 4", "boxes2": f"{second} 4"})
        for kind in ("generalized", "distance", "complete")
        for tail, second in (("", "M"), ("_loss", "N"))
    },
    "pairwise_iou_backward": ("complete-33x65", {"boxes1": "N 4", "boxes2": "M 4", "grad": "N M"}),
    "iou_loss_backward": ("complete-65", {"boxes1": "N 4", "boxes2": "N 4", "grad": "N"}),
    "sigmoid_focal_loss": ("strided", {"inputs": "N M", "targets": "N M"}),
    "sigmoid_focal_loss_backward": ("strided", {"inputs": "N M", "targets": "N M", "grad": "N M"}),
    "class_focal_loss": ("33x80-weighted", {"inputs": "N C", "targets": "N", "weight": "C"}),
    "class_focal_loss_backward": (
        "33x80-weighted",
        {"inputs": "N C", "targets": "N", "weight": "C", "grad": "N C"},
    ),
    "nms": ("N64", {"boxes": "N 4", "scores": "N"}),
    "batched_nms": ("N64", {"boxes": "N 4", "scores": "N", "idxs": "N"}),
    "nms_padded": (
        "counts-classes-odd",
        {"boxes": "B N 4", "scores": "B N", "class_ids": "B N", "counts": "B<N", "max_output": "P"},
    ),
    "soft_nms": ("counts", {"boxes": "B N 4", "scores": "B N", "counts": "B<N", "max_output": "P"}),
    "rpn_proposals": (
        "before-f32-odd",
        {
            "scores": "B A",
            "deltas": "B A 4",
            "anchors": "A 4",
            "image_sizes": "B 2",
            "pre_nms_top_n": "n",
            "post_nms_top_n": "P",
        },
    ),
    "gather_anchors": ("none-chosen", {"maps": "B C H W", "indices": "B S"}),
    "gather_anchors_backward": ("none-chosen", {"maps": "B C H W", "indices": "B S", "grad": "B S 4"}),
    "assign_anchors": ("f32-odd", {"anchors": "A 4", "gt_boxes": "B G 4", "gt_counts": "B<G", "crowd": "B G"}),
    "sample_anchors": ("A0", {"labels": "B A", "batch_size": "S"}),
    "rpn_targets": ("f32", {"anchors": "A 4", "gt_boxes": "B G 4", "gt_counts": "B<G", "batch_size": "S"}),
    "sample_rois": (
        "no-append",
        {
            "proposals": "B N 4",
            "counts": "B<N",
            "gt_boxes": "B G 4",
            "gt_labels": "B G",
            "gt_counts": "B<G",
            "batch_size": "S",
        },
    ),
    "detections": (
        "K1",
        {
            "class_logits": "B N K1",
            "box_deltas": "B N K4",
            "proposals": "B N 4",
            "counts": "B<N",
            "image_sizes": "B 2",
            "max_detections": "D",
        },
    ),
    "roi_pool": ("K33", {"input": "B C H W", "boxes": "R@B 5", "output_size": "P"}),
    "roi_pool_backward": ("K33", {"input": "B C H W", "boxes": "R@B 5", "grad": "R C 7 7"}),
    "roi_align": ("K33", {"input": "B C H W", "boxes": "R@B 5", "output_size": "P"}),
    "roi_align_backward": ("K33", {"input": "B C H W", "boxes": "R@B 5", "grad": "R C 7 7"}),
    "roi_align_rois_backward": ("f16", {"input": "B C H W", "boxes": "R@B 5", "grad": "R C 7 7"}),
    "roi_align_max": ("K33", {"input": "B C H W", "boxes": "R@B 5", "output_size": "P"}),
    "roi_align_max_backward": ("K33", {"input": "B C H W", "boxes": "R@B 5", "grad": "R C 7 7"}),
    "prroi_pool": ("f16", {"features": "B C H W", "rois": "R@B 5", "output_size": "P"}),
    "prroi_pool_backward": ("f16", {"features": "B C H W", "rois": "R@B 5", "grad": "R C 7 7"}),
    "multiscale_roi_align": ("K40", {"features": "B C H W", "boxes": "R@B 5", "output_size": "P"}),
    "multiscale_roi_align_backward": ("K40", {"features": "B C H W", "boxes": "R@B 5", "grad": "R C 7 7"}),
}
WITHOUT_SIZES = {"generate_anchors"}  # of Python numbers


def cut(value: Any, sizes: str, zero: str) -> Any:
    """The argument with the size `zero` reduced to none."""
    if not isinstance(value, (Tensor, list)):
        return 0 if sizes == zero else value
    if isinstance(value, list):
        return [cut(v, sizes, zero) for v in value]
    for dim, size in enumerate(sizes.split()):
        least = {zero: 0, zero + "1": 1, zero + "4": 4}
        own, _, image = size.partition("@")
        own, _, limit = own.partition("<")
        if own in least:
            value = value.narrow(dim, 0, least[own])
        if limit == zero:
            value = torch.zeros_like(value)
        if image == zero:
            value = torch.cat([torch.full_like(value[:, :1], -1), value[:, 1:]], 1)
    return value


def backend_named(name: str) -> Backend:
    return next(backend for backend in BACKENDS if backend.name == name)


def zero_cases() -> Iterator[Any]:
    for op in OPS:
        if op.name in WITHOUT_SIZES or op.name not in SIZES:
            continue
        cut_down, arguments = SIZES[op.name]
        (case,) = [c for c in op.cases if c.name == cut_down]
        letters = sorted({size[0] for sizes in arguments.values() for size in sizes.split() if size[0].isalpha()})
        for zero in letters:

            def make(case: Case = case, arguments: dict[str, str] = arguments, zero: str = zero) -> Args:
                args = inputs(case)
                return args | {k: cut(args[k], sizes, zero) for k, sizes in arguments.items() if k in args}

            for name in ("simt", "simt80"):
                if (backend := backend_named(name)).serves(op.name):
                    yield pytest.param(op, backend, Case(f"{zero}=0", make), id=f"{op.name}-{name}-{zero}=0")


def refusal(op: Op, backend: Backend, case: Case) -> str:
    """What the op says of these arguments; "" where it takes them."""
    try:
        run(op, backend, case)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.skipif(bool(missing_reason()), reason=missing_reason())
@pytest.mark.parametrize(("op", "device", "sized"), list(zero_cases()))
def test_zero_size(op: Op, device: Backend, sized: Case) -> None:
    refused = refusal(op, backend_named("reference"), sized)
    if refused:
        assert refusal(op, device, sized) == refused
        return
    label = f"{op.name} on {device.name}, {sized.name}"
    assert_conforms(op, run(op, device, sized), expected(op, sized), inputs(sized), label)


def test_every_op_has_its_sizes() -> None:
    assert set(BY_NAME) == set(SIZES) | WITHOUT_SIZES
